package nsexec

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Rebirth is where the second child of a launch is found: its pid and a pidfd,
// the first child's number for it.
type Rebirth struct{ pid, pidfd Reg }

// Rebirth has the child make another, born with new namespaces inside those the
// first has joined, that runs the rest of the program and is a child of ours as
// well (CLONE_PARENT). It is for a user namespace that meets namespaces joined
// by path: those must be joined with the rights outside it, new ones must belong
// to it, and one process cannot do both. Of what was done before, namespaces and
// open files are inherited; the caller follows it at the next gate (Follow).
//
// Both processes see one set of registers, so the first changes none any more:
// it waits until it is killed, to keep the pidfd open.
func (p *Program) Rebirth(flags uint64) Rebirth {
	r := Rebirth{pid: p.NewReg("pid"), pidfd: p.NewReg("pidfd")}
	p.Step("start over in a child inside the namespaces joined (%s)", CloneFlags(flags))
	cell := func(r Reg) uint64 { return p.mem.addr(8 * int(r)) }
	flags |= unix.CLONE_PARENT | unix.CLONE_PIDFD | unix.CLONE_PARENT_SETTID | unix.CLONE_CLEAR_SIGHAND
	args := p.Words(flags, cell(r.pidfd), 0, cell(r.pid), 0, 0, 0, 0, 0, 0, 0)
	p.Call(unix.SYS_CLONE3, args, Int(88))
	// Who is who? The kernel puts the pidfd into the first one's table only.
	first := p.Call(unix.SYS_FCNTL, r.pidfd.Arg(), Int(unix.F_GETFD), Int(0)).Ignore(unix.EBADF)
	p.IfOK(first, func() {
		p.Call(unix.SYS_CLOSE, regStatus.Arg()) // the end of the other is the end of the launch
		p.Call(unix.SYS_PPOLL, Nil, Int(0), Nil, Nil, Int(8))
		p.Call(unix.SYS_EXIT_GROUP, Int(1))
	})
	return r
}

// Follow makes the child's second child, which waits at a gate, the child, and
// ends the first.
func (c *Child) Follow(regs *Registers, r Rebirth) error {
	first := c.Process
	pidfd, err := first.GetFd(regs.Fd(r.pidfd))
	if err != nil {
		return err
	}
	l := first.owner
	l.fork.RLock()
	second, err := l.newProcess(regs.Fd(r.pid), pidfd)
	l.fork.RUnlock()
	if err != nil {
		unix.Close(pidfd)
		return err
	}
	c.Process = second
	second.attend()
	if err := first.Signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("end the first child of a launch: %w", err)
	}
	<-first.Done()
	return first.Close()
}
