package tasksvc

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A process with CAP_SYS_PTRACE in the guest's user namespace may trace every
// process that it sees, and so take over one that is on its way into the
// container while that still has all the rights of the daemon; that it is not
// dumpable keeps only others out (ptrace(2), "Ptrace access mode checking").
// Where there are such processes execs are born into the container's pid
// namespace late (nsexec.Finish), with the rights that they keep. And the
// memory of their programs, which they share with the daemon until they execute
// the user's, is used for no other launch: a tracer could have made a process
// that keeps it mapped.
//
// A container without a pid namespace that may trace can trace the daemon as
// well: nothing is kept from it.
//
// What remains: a container that is created in the pid namespace of one whose
// processes may trace. Its procfs can only be mounted from inside.

// mayTrace says whether a process of the container, or of one that shares its
// pid namespace, may trace the one that is about to be made, and takes note of
// what that one may do. It is never unsaid: processes leave others behind.
func (c *container) mayTrace(proc *specs.Process) bool {
	if c.join&unix.CLONE_NEWUSER == 0 && c.join&unix.CLONE_NEWPID != 0 && canTrace(proc) {
		c.svc.tracers.Store(true)
	}
	return c.svc.tracers.Load()
}

func canTrace(proc *specs.Process) bool {
	if proc == nil || proc.Capabilities == nil {
		return false
	}
	caps := proc.Capabilities
	for _, set := range [][]string{caps.Bounding, caps.Permitted, caps.Inheritable} {
		if slices.Contains(set, "CAP_SYS_PTRACE") {
			return true
		}
	}
	return false
}

// late reports whether an exec that joins these namespaces is forked late. A user
// namespace keeps tracers out by itself: the daemon's memory belongs to the
// guest's.
func (o compileOptions) late(join uint64) bool {
	return o.traced && join&unix.CLONE_NEWPID != 0 && join&unix.CLONE_NEWUSER == 0
}
