package nsexec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// schedPolicies and schedFlags are those of sched_setattr(2) (linux/sched.h).
// SCHED_ISO is in the spec's list but in no kernel.
var (
	schedPolicies = []flagName{
		{unix.SCHED_NORMAL, "SCHED_OTHER"}, {unix.SCHED_FIFO, "SCHED_FIFO"}, {unix.SCHED_RR, "SCHED_RR"},
		{unix.SCHED_BATCH, "SCHED_BATCH"}, {unix.SCHED_IDLE, "SCHED_IDLE"}, {unix.SCHED_DEADLINE, "SCHED_DEADLINE"},
	}
	schedFlags = []flagName{
		{unix.SCHED_FLAG_RESET_ON_FORK, "SCHED_FLAG_RESET_ON_FORK"}, {unix.SCHED_FLAG_RECLAIM, "SCHED_FLAG_RECLAIM"},
		{unix.SCHED_FLAG_DL_OVERRUN, "SCHED_FLAG_DL_OVERRUN"}, {unix.SCHED_FLAG_KEEP_POLICY, "SCHED_FLAG_KEEP_POLICY"},
		{unix.SCHED_FLAG_KEEP_PARAMS, "SCHED_FLAG_KEEP_PARAMS"}, {unix.SCHED_FLAG_UTIL_CLAMP_MIN, "SCHED_FLAG_UTIL_CLAMP_MIN"},
		{unix.SCHED_FLAG_UTIL_CLAMP_MAX, "SCHED_FLAG_UTIL_CLAMP_MAX"},
	}
)

// fullCapacity is SCHED_CAPACITY_SCALE, the largest utilisation clamp.
const fullCapacity = 1024

// parseScheduler turns process.scheduler into the argument of sched_setattr(2)
// (Linux 3.14; utilisation clamps 5.3). Values that the kernel would round or
// ignore are refused: what was asked for is what there is.
func parseScheduler(s *specs.Scheduler) (*unix.SchedAttr, error) {
	if s.Policy == specs.SchedISO {
		return nil, sys.Unsupportedf("process.scheduler: SCHED_ISO is not implemented by Linux")
	}
	policy, ok := lookup(schedPolicies, string(s.Policy))
	if !ok {
		return nil, sys.Invalidf("process.scheduler: unknown policy %q", s.Policy)
	}
	a := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: uint32(policy), Nice: s.Nice, Priority: uint32(s.Priority),
		Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period}
	for _, name := range s.Flags {
		bit, ok := lookup(schedFlags, string(name))
		if !ok {
			return nil, sys.Invalidf("process.scheduler: unknown flag %q", name)
		}
		a.Flags |= bit
	}
	if a.Flags&unix.SCHED_FLAG_UTIL_CLAMP_MAX != 0 { // the spec has no value for it: all there is
		a.Util_max = fullCapacity
	}
	realtime := policy == unix.SCHED_FIFO || policy == unix.SCHED_RR
	switch {
	case s.Nice < -20 || s.Nice > 19:
		return nil, sys.Invalidf("process.scheduler: nice %d is not between -20 and 19", s.Nice)
	case realtime && (s.Priority < 1 || s.Priority > 99):
		return nil, sys.Invalidf("process.scheduler: %s needs a priority from 1 to 99, not %d", s.Policy, s.Priority)
	case !realtime && s.Priority != 0:
		return nil, sys.Invalidf("process.scheduler: priority is for SCHED_FIFO and SCHED_RR only")
	case policy != unix.SCHED_DEADLINE && s.Runtime|s.Deadline|s.Period != 0:
		return nil, sys.Invalidf("process.scheduler: runtime, deadline and period are for SCHED_DEADLINE only")
	}
	return a, nil
}

// setScheduler has the child set its own scheduling.
func (p *Program) setScheduler(a *unix.SchedAttr) {
	p.Step("set the scheduling policy to %s", decodeValue(uint64(a.Policy), schedPolicies))
	attr := p.Words(uint64(a.Size)|uint64(a.Policy)<<32, a.Flags, uint64(uint32(a.Nice))|uint64(a.Priority)<<32,
		a.Runtime, a.Deadline, a.Period, uint64(a.Util_min)|uint64(a.Util_max)<<32)
	p.Call(unix.SYS_SCHED_SETATTR, Int(0), attr, Int(0))
}
