package nsexec

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Refork is where the second child of a launch is found: the number of its
// pidfd in the first one.
type Refork struct{ pidfd Reg }

// Refork makes a second child with CLONE_PARENT (what runc calls stage 2), which
// runs the rest of the program as a child of the daemon. It has new namespaces
// inside those the first has joined. It is for a user namespace that meets
// namespaces joined by path: those must be joined with the rights outside it, new
// ones must belong to it, and one process cannot do both. Of what was done before,
// namespaces and open files are inherited; the caller follows it at the next gate
// (Follow).
//
// Both processes see one set of registers, so the first changes none any more:
// it waits until it is killed, to keep the pidfd open.
func (p *Program) Refork(flags uint64) Refork {
	r := Refork{pidfd: p.NewReg("pidfd")}
	p.Step("start over in a child inside the namespaces joined (%s)", CloneFlags(flags))
	pidfd := Arg{v: p.mem.addr(8 * int(r.pidfd))}
	if flags == 0 {
		// A seccomp filter may be in force that answers ENOSYS to clone3, as
		// containerd's does.
		p.Call(unix.SYS_CLONE, Int(unix.CLONE_PARENT|unix.CLONE_PIDFD|sigchld), Nil, pidfd, Nil, Nil)
	} else { // clone cannot do CLONE_NEWTIME
		flags |= unix.CLONE_PARENT | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND
		p.Call(unix.SYS_CLONE3, p.Words(flags, pidfd.v, 0, 0, 0, 0, 0, 0, 0, 0, 0), Int(88))
	}
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
func (c *Child) Follow(regs *Registers, r Refork) error {
	first := c.Process
	pidfd, err := first.GetFd(regs.Fd(r.pidfd))
	if err != nil {
		return err
	}
	l := first.owner
	l.fork.RLock()
	second, err := l.adopt(pidfd)
	l.fork.RUnlock()
	if err != nil {
		unix.Close(pidfd)
		return err
	}
	c.Process = second
	second.startWatch()
	if err := first.Signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("end the first child of a launch: %w", err)
	}
	<-first.Done()
	return first.Close()
}

// adopt takes ownership of the pidfd of a process that must be a new child of
// ours. The pidfd comes from the container's side and is not trusted. The caller
// holds l.fork for reading.
func (l *Launcher) adopt(pidfd int) (*Process, error) {
	info, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	if err != nil {
		return nil, fmt.Errorf("find the second child of a launch: %w", err)
	}
	pid := pidOf(info)
	l.mu.Lock()
	known := l.children[pid] != nil
	l.mu.Unlock()
	// Waiting works for children only (waitid(2), P_PIDFD).
	if _, err := sys.Waitid(unix.P_PIDFD, pidfd, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT); err != nil || pid <= 0 || known {
		return nil, fmt.Errorf("the second child of a launch is no new child of ours: %w", unix.ECHILD)
	}
	return l.newProcess(pid, pidfd)
}

// pidOf finds the process id in the fdinfo of a pidfd (proc_pid_fdinfo(5)), 0
// if there is none.
func pidOf(info []byte) int {
	for line := range bytes.Lines(info) {
		if text, ok := bytes.CutPrefix(line, []byte("Pid:")); ok {
			pid, _ := strconv.Atoi(string(bytes.TrimSpace(text)))
			return max(pid, 0)
		}
	}
	return 0
}
