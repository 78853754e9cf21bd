package nsexec

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

const sigchld = uint64(unix.SIGCHLD)

// ExitStatus is how a process ended.
type ExitStatus struct {
	Code   int            // exit code, or 128 + Signal
	Signal syscall.Signal // 0 unless a signal ended it
	Core   bool
	At     time.Time // when we learnt of it
}

func exitStatus(c sys.Child) ExitStatus {
	st := ExitStatus{Code: c.Status, At: time.Now()}
	if c.Code != cldExited {
		st.Signal = syscall.Signal(c.Status)
		st.Code = 128 + c.Status
		st.Core = c.Code == cldDumped
	}
	return st
}

// si_code values of SIGCHLD, sigaction(2).
const (
	cldExited = 1
	cldDumped = 3
)

// Process is a child of ours. Its identity is the pidfd; the pid is a label
// that stays valid until the process is reaped. Safe for concurrent use.
type Process struct {
	pid   int
	fd    int // of pidfd, without what File.Fd does to it
	pidfd *os.File
	owner *Launcher
	done  chan struct{}
	once  sync.Once // of watch

	mu     sync.Mutex // guards status, reaped
	reaped bool
	status ExitStatus
}

// newProcess takes ownership of the pidfd. The caller holds l.fork for reading.
func (l *Launcher) newProcess(pid, pidfd int) (*Process, error) {
	// Non-blocking makes the file pollable: one goroutine waits, no thread.
	if err := unix.SetNonblock(pidfd, true); err != nil {
		return nil, fmt.Errorf("make pidfd of %d pollable: %w", pid, err)
	}
	p := &Process{pid: pid, fd: pidfd, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), owner: l, done: make(chan struct{})}
	l.mu.Lock()
	l.children[pid] = p
	l.mu.Unlock()
	return p, nil
}

// startWatch has somebody wait for the end of the process. Not sooner than its
// parent has time for that: a goroutine wakes a thread, which takes a processor
// that a child which has just been born could run on.
func (p *Process) startWatch() { p.once.Do(func() { go p.watch() }) }

// watch reaps the process when its pidfd becomes readable (pidfd_open(2),
// Linux 5.3; waitid(P_PIDFD), Linux 5.4).
func (p *Process) watch() {
	rc, err := p.pidfd.SyscallConn()
	if err == nil {
		err = rc.Read(func(uintptr) bool { return p.tryReap() })
	}
	if err != nil && !p.tryReap() { // not pollable: spend a thread instead
		_, _ = p.reap(0)
	}
}

// PID is the process id in our pid namespace: a label for people and logs.
func (p *Process) PID() int { return p.pid }

// Done is closed when the process has been reaped.
func (p *Process) Done() <-chan struct{} {
	p.startWatch()
	return p.done
}

// Reaped reports whether the process has been reaped: Done is closed.
func (p *Process) Reaped() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reaped
}

// Exit returns the exit status; it is meaningful once Done is closed.
func (p *Process) Exit() ExitStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// tryReap reaps the process if it is dead and reports whether it is reaped.
func (p *Process) tryReap() bool {
	reaped, _ := p.reap(unix.WNOHANG)
	return reaped
}

func (p *Process) reap(flags int) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return true, nil
	}
	c, err := sys.Waitid(unix.P_PIDFD, p.fd, unix.WEXITED|flags)
	switch {
	case err == unix.EAGAIN || err == nil && c.PID == 0:
		return false, nil
	case err != nil: // ECHILD: somebody else reaped our child
		p.status = ExitStatus{Code: 255, At: time.Now()}
	default:
		p.status = exitStatus(c)
	}
	p.reaped = true
	p.owner.mu.Lock()
	if p.owner.children[p.pid] == p {
		delete(p.owner.children, p.pid)
	}
	p.owner.mu.Unlock()
	close(p.done)
	return true, err
}

// Signal sends a signal by pidfd_send_signal(2) (Linux 5.1), which cannot hit
// another process. A process that has ended gives os.ErrProcessDone.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return os.ErrProcessDone
	}
	err := unix.PidfdSendSignal(p.fd, unix.Signal(sig), nil, 0)
	if err == unix.ESRCH {
		return os.ErrProcessDone
	}
	if err != nil {
		return fmt.Errorf("send %s to process %d: %w", unix.SignalName(sig), p.pid, err)
	}
	return nil
}

// WhileAlive runs f, which should be short, with the process's pid. Until it
// returns the process is not reaped, so that the pid cannot become another's:
// it is for what the kernel offers by pid only. A process that has ended gives
// os.ErrProcessDone.
func (p *Process) WhileAlive(f func(pid int) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return os.ErrProcessDone
	}
	return f(p.pid)
}

// Pidfd returns the process's pidfd. It stays the Process's and is valid until
// Close.
func (p *Process) Pidfd() int { return p.fd }

// GetFd duplicates the process's fd n into ours (pidfd_getfd(2), Linux 5.6).
// The caller closes it; it is close-on-exec.
func (p *Process) GetFd(n int) (int, error) {
	fd, err := unix.PidfdGetfd(p.fd, n, 0)
	if err != nil {
		return -1, fmt.Errorf("fetch fd %d of process %d: %w", n, p.pid, err)
	}
	return fd, nil
}

// Close releases the pidfd of a process that has been reaped; before that it
// does nothing, so a live child is never forgotten.
func (p *Process) Close() error {
	p.mu.Lock()
	reaped := p.reaped
	p.mu.Unlock()
	if !reaped {
		return fmt.Errorf("close process %d: %w", p.pid, os.ErrInvalid)
	}
	return p.pidfd.Close() // waits for watch, which takes mu
}
