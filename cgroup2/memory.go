package cgroup2

import (
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
)

// planMemory plans memory.max, memory.low and memory.swap.max.
func planMemory(r *specs.LinuxResources) ([]Write, error) {
	m := r.Memory
	if m == nil {
		return nil, nil
	}
	if m.KernelTCP != nil && *m.KernelTCP > 0 {
		return nil, sys.Unsupportedf("memory.kernelTCP: cgroup v2 has no limit of its own for TCP buffers, they count as memory")
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		return nil, sys.Unsupportedf("memory.disableOOMKiller: cgroup v2 cannot disable the OOM killer")
	}
	var writes []Write
	limit, ok, err := limitValue("memory.limit", m.Limit)
	if err != nil {
		return nil, err
	}
	if ok {
		w := Write{File: "memory.max", Value: limit}
		if m.CheckBeforeUpdate != nil && *m.CheckBeforeUpdate {
			w.Above = "memory.current"
		}
		writes = append(writes, w)
	}
	low, ok, err := limitValue("memory.reservation", m.Reservation)
	if err != nil {
		return nil, err
	}
	if ok {
		writes = append(writes, Write{File: "memory.low", Value: low})
	}
	swap, ok, err := swapValue(m)
	if err != nil {
		return nil, err
	}
	if ok {
		// Without swap accounting there is no swap to allow or to forbid.
		none := swap == "max" || swap == "0"
		writes = append(writes, Write{File: "memory.swap.max", Value: swap, Optional: none})
	}
	return writes, nil
}

// swapValue converts a limit of memory and swap together into one of swap.
// Lifting the memory limit lifts an unspecified swap limit with it, as it did
// in v1.
func swapValue(m *specs.LinuxMemory) (value string, ok bool, err error) {
	limit := deref(m.Limit)
	value, ok, err = limitValue("memory.swap", m.Swap)
	switch {
	case err != nil:
		return "", false, err
	case !ok:
		return "max", limit == -1, nil
	case value == "max" || limit == -1:
		return value, true, nil
	case limit == 0:
		return "", false, sys.Invalidf("memory.swap is %d, but there is no memory.limit to subtract from it", *m.Swap)
	case *m.Swap < limit:
		return "", false, sys.Invalidf("memory.swap is %d: memory and swap together cannot be less than memory.limit, %d", *m.Swap, limit)
	}
	return strconv.FormatInt(*m.Swap-limit, 10), true, nil
}

func deref[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
