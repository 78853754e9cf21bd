package cgroup2

import (
	"maps"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// PlanUpdate plans what an update of a running container changes. base is what
// the container has, update what was asked for: usually a few fields, some of
// which mean something only together with others (a period without its quota,
// swap without the memory limit). merged is base overlaid with update and is
// the next update's base; it may share memory with both. The writes, for
// [Cgroup.Update], are those of merged's plan that base's has not. Devices are
// taken from base: an update does not change them, as with runc.
//
// Errors are those of [Plan].
func PlanUpdate(base, update *specs.LinuxResources) (merged *specs.LinuxResources, writes []Write, err error) {
	before, err := Plan(base)
	if err != nil {
		return nil, nil, err
	}
	merged = mergeResources(base, update)
	after, err := Plan(merged)
	if err != nil {
		return nil, nil, err
	}
	writes = slices.DeleteFunc(after, func(w Write) bool {
		return slices.ContainsFunc(before, func(b Write) bool { return b.File == w.File && b.Value == w.Value })
	})
	return merged, writes, nil
}

// mergeResources overlays base with the fields that update has. Lists and maps
// are merged entry by entry.
func mergeResources(base, update *specs.LinuxResources) *specs.LinuxResources {
	var r specs.LinuxResources
	if base != nil {
		r = *base
	}
	if update == nil {
		return &r
	}
	r.Memory = mergeMemory(r.Memory, update.Memory)
	r.CPU = mergeCPU(r.CPU, update.CPU)
	if update.Pids != nil && update.Pids.Limit != nil {
		r.Pids = update.Pids
	}
	r.BlockIO = mergeBlockIO(r.BlockIO, update.BlockIO)
	r.HugepageLimits = mergeList(r.HugepageLimits, update.HugepageLimits,
		func(l specs.LinuxHugepageLimit) string { return l.Pagesize })
	if update.Network != nil {
		r.Network = update.Network
	}
	r.Rdma = mergeMap(r.Rdma, update.Rdma)
	r.Unified = mergeMap(r.Unified, update.Unified)
	return &r
}

func mergeMemory(base, update *specs.LinuxMemory) *specs.LinuxMemory {
	if base == nil || update == nil {
		return either(update, base)
	}
	m := *base
	m.Limit = either(update.Limit, m.Limit)
	m.Reservation = either(update.Reservation, m.Reservation)
	m.Swap = either(update.Swap, m.Swap)
	m.Kernel = either(update.Kernel, m.Kernel)
	m.KernelTCP = either(update.KernelTCP, m.KernelTCP)
	m.Swappiness = either(update.Swappiness, m.Swappiness)
	m.DisableOOMKiller = either(update.DisableOOMKiller, m.DisableOOMKiller)
	m.UseHierarchy = either(update.UseHierarchy, m.UseHierarchy)
	m.CheckBeforeUpdate = either(update.CheckBeforeUpdate, m.CheckBeforeUpdate)
	return &m
}

func mergeCPU(base, update *specs.LinuxCPU) *specs.LinuxCPU {
	if base == nil || update == nil {
		return either(update, base)
	}
	c := *base
	c.Shares = either(update.Shares, c.Shares)
	c.Quota = either(update.Quota, c.Quota)
	c.Burst = either(update.Burst, c.Burst)
	c.Period = either(update.Period, c.Period)
	c.RealtimeRuntime = either(update.RealtimeRuntime, c.RealtimeRuntime)
	c.RealtimePeriod = either(update.RealtimePeriod, c.RealtimePeriod)
	c.Idle = either(update.Idle, c.Idle)
	if update.Cpus != "" {
		c.Cpus = update.Cpus
	}
	if update.Mems != "" {
		c.Mems = update.Mems
	}
	return &c
}

func mergeBlockIO(base, update *specs.LinuxBlockIO) *specs.LinuxBlockIO {
	if base == nil || update == nil {
		return either(update, base)
	}
	b := *base
	b.Weight = either(update.Weight, b.Weight)
	b.LeafWeight = either(update.LeafWeight, b.LeafWeight)
	b.WeightDevice = mergeList(b.WeightDevice, update.WeightDevice,
		func(d specs.LinuxWeightDevice) specs.LinuxBlockIODevice { return d.LinuxBlockIODevice })
	throttle := func(base, update []specs.LinuxThrottleDevice) []specs.LinuxThrottleDevice {
		return mergeList(base, update,
			func(d specs.LinuxThrottleDevice) specs.LinuxBlockIODevice { return d.LinuxBlockIODevice })
	}
	b.ThrottleReadBpsDevice = throttle(b.ThrottleReadBpsDevice, update.ThrottleReadBpsDevice)
	b.ThrottleWriteBpsDevice = throttle(b.ThrottleWriteBpsDevice, update.ThrottleWriteBpsDevice)
	b.ThrottleReadIOPSDevice = throttle(b.ThrottleReadIOPSDevice, update.ThrottleReadIOPSDevice)
	b.ThrottleWriteIOPSDevice = throttle(b.ThrottleWriteIOPSDevice, update.ThrottleWriteIOPSDevice)
	return &b
}

// either returns a, or b if a is nil.
func either[T any](a, b *T) *T {
	if a != nil {
		return a
	}
	return b
}

// mergeList returns base without the entries that update has too, and update.
func mergeList[T any, K comparable](base, update []T, key func(T) K) []T {
	if len(update) == 0 {
		return base
	}
	kept := slices.DeleteFunc(slices.Clone(base), func(b T) bool {
		return slices.ContainsFunc(update, func(u T) bool { return key(u) == key(b) })
	})
	return append(kept, update...)
}

func mergeMap[V any](base, update map[string]V) map[string]V {
	if len(update) == 0 {
		return base
	}
	m := maps.Clone(base)
	if m == nil {
		m = map[string]V{}
	}
	maps.Copy(m, update)
	return m
}
