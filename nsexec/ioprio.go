package nsexec

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// ioClasses are the scheduling classes of ioprio_set(2) (linux/ioprio.h).
var ioClasses = []flagName{{1, "IOPRIO_CLASS_RT"}, {2, "IOPRIO_CLASS_BE"}, {3, "IOPRIO_CLASS_IDLE"}}

const (
	ioWhoProcess = 1  // IOPRIO_WHO_PROCESS
	ioClassShift = 13 // IOPRIO_CLASS_SHIFT
)

// parseIOPriority turns process.ioPriority into the number ioprio_set(2) takes
// (Linux 2.6.13). It is never 0.
func parseIOPriority(p *specs.LinuxIOPriority) (int, error) {
	class, ok := lookup(ioClasses, string(p.Class))
	if !ok {
		return 0, sys.Invalidf("process.ioPriority: unknown class %q", p.Class)
	}
	if p.Priority < 0 || p.Priority > 7 {
		return 0, sys.Invalidf("process.ioPriority: priority %d is not between 0 and 7", p.Priority)
	}
	return int(class)<<ioClassShift | p.Priority, nil
}

// setIOPriority has the child set its own I/O priority; it is alone in its
// process group, and its children will inherit it.
func (p *Program) setIOPriority(prio int) {
	p.Step("set the I/O priority to %s, %d", decodeValue(uint64(prio)>>ioClassShift, ioClasses), prio&(1<<ioClassShift-1))
	p.Call(unix.SYS_IOPRIO_SET, Int(ioWhoProcess), Int(0), Int(prio))
}

// setIOPriorityOf sets that of another process.
func setIOPriorityOf(pid, prio int) error {
	if _, _, e := unix.Syscall(unix.SYS_IOPRIO_SET, ioWhoProcess, uintptr(pid), uintptr(prio)); e != 0 {
		return fmt.Errorf("set the I/O priority: %w", e)
	}
	return nil
}
