package cgroup2

import (
	"cmp"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
)

// Write is one write(2) to one file of a cgroup.
type Write struct {
	File, Value string

	// Optional: nothing that was asked for is lost if the kernel lacks File.
	Optional bool
	// Else is done instead if the kernel lacks File.
	Else *Write
	// Above names a file with one number that Value has to exceed. Nothing of
	// the plan is written if it does not.
	Above string
}

// String prints the write as golden files have it.
func (w Write) String() string {
	s := w.File + " = " + strconv.Quote(w.Value)
	if w.Optional {
		s += ", if there"
	}
	if w.Above != "" {
		s += ", if above " + w.Above
	}
	if w.Else != nil {
		s += ", or else " + w.Else.String()
	}
	return s
}

// Plan turns the resources of the runtime specification into writes, in the
// order they are to be done in. It looks at nothing but its argument. A nil r
// plans nothing. Devices are not part of it: see [Cgroup.SetDevices].
//
// The specification speaks of cgroup v1 in places. Where v2 differs Plan does
// as runc and crun do:
//
//   - A limit of -1 is "max". A limit of 0 is no setting at all, except in
//     pids.limit, where it means 1, and in a blockIO throttle, where it is "max".
//   - cpu.shares becomes cpu.weight by the quadratic formula of runc 1.3.2 and
//     crun 1.23, by which 1024 shares are the default weight of 100.
//   - memory.swap counts memory and swap together; memory.swap.max only swap.
//   - blockIO.weight goes to io.bfq.weight; where BFQ is not loaded, converted
//     linearly from 10..1000 to 1..10000, to io.weight.
//   - unified wins over every other field.
//
// Ignored, because they tune what v2 does not have: memory.kernel (the
// specification allows that), memory.swappiness, memory.useHierarchy,
// blockIO.leafWeight. Refused with [sys.ErrUnsupported], because a promise
// would be broken silently: memory.kernelTCP, memory.disableOOMKiller,
// cpu.realtimeRuntime, cpu.realtimePeriod, network.classID,
// network.priorities. Anything malformed is [sys.ErrInvalid].
func Plan(r *specs.LinuxResources) ([]Write, error) {
	if r == nil {
		return nil, nil
	}
	var writes []Write
	for _, plan := range []func(*specs.LinuxResources) ([]Write, error){
		planCPU, planCpuset, planHugeTLB, planIO, planMemory, planNetwork, planPids, planRDMA,
	} {
		more, err := plan(r)
		if err != nil {
			return nil, err
		}
		writes = append(writes, more...)
	}
	writes, err := planUnified(writes, r.Unified)
	if err != nil {
		return nil, err
	}
	// By name, except that memory.max comes after all else of its controller:
	// lowering it reclaims at once, and kills if that is not enough, so
	// protection and room for swap must be in place by then.
	order := func(w Write) string {
		if w.File == "memory.max" {
			return "memory.~"
		}
		return w.File
	}
	slices.SortStableFunc(writes, func(a, b Write) int { return cmp.Compare(order(a), order(b)) })
	return writes, nil
}

// limitValue is a limit as cgroup files have it; ok is false if there is none.
func limitValue(field string, limit *int64) (value string, ok bool, err error) {
	switch {
	case limit == nil || *limit == 0:
		return "", false, nil
	case *limit == -1:
		return "max", true, nil
	case *limit < 0:
		return "", false, sys.Invalidf("%s is %d, must be -1 (no limit) or above", field, *limit)
	}
	return strconv.FormatInt(*limit, 10), true, nil
}

// planNetwork refuses what only the net_cls and net_prio controllers of v1 do.
func planNetwork(r *specs.LinuxResources) ([]Write, error) {
	n := r.Network
	if n != nil && (n.ClassID != nil && *n.ClassID != 0 || len(n.Priorities) > 0) {
		return nil, sys.Unsupportedf("resources.network: cgroup v2 has no network classes or priorities")
	}
	return nil, nil
}
