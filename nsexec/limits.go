package nsexec

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Limits are the resource limits, the scheduling and the I/O priority of a
// process. To raise them takes privilege in the initial user namespace, which a
// process in another one does not have: then its parent applies them.
type Limits struct {
	rlimits   []rlimit
	scheduler *unix.SchedAttr // nil: inherited
	ioprio    int             // 0: inherited
}

// ParseLimits reads them from a process of the spec.
func ParseLimits(proc *specs.Process) (l Limits, err error) {
	if l.rlimits, err = parseRlimits(proc.Rlimits); err != nil {
		return Limits{}, err
	}
	if proc.Scheduler != nil {
		if l.scheduler, err = parseScheduler(proc.Scheduler); err != nil {
			return Limits{}, err
		}
	}
	if proc.IOPriority != nil {
		if l.ioprio, err = parseIOPriority(proc.IOPriority); err != nil {
			return Limits{}, err
		}
	}
	return l, nil
}

// IsZero reports whether nothing is to be set.
func (l Limits) IsZero() bool { return len(l.rlimits) == 0 && l.scheduler == nil && l.ioprio == 0 }

// setLimits has the child set them for itself.
func (p *Program) setLimits(l Limits) {
	p.setRlimits(l.rlimits)
	if l.ioprio != 0 {
		p.setIOPriority(l.ioprio)
	}
	if l.scheduler != nil {
		p.setScheduler(l.scheduler)
	}
}

// Apply sets them for a child, which waits at its last gate: limits for the
// user's program could be too tight for what comes before it.
func (l Limits) Apply(c *Process) error {
	return c.WhileAlive(func(pid int) error {
		if err := setRlimitsOf(pid, l.rlimits); err != nil {
			return err
		}
		if l.ioprio != 0 {
			if err := setIOPriorityOf(pid, l.ioprio); err != nil {
				return err
			}
		}
		if l.scheduler != nil {
			if err := unix.SchedSetAttr(pid, l.scheduler, 0); err != nil {
				return fmt.Errorf("set the scheduling policy to %s: %w", decodeValue(uint64(l.scheduler.Policy), schedPolicies), err)
			}
		}
		return nil
	})
}
