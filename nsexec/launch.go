package nsexec

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Launcher makes children and knows those that live. One per daemon.
type Launcher struct {
	self int    // our own pidfd, for coming back from a container's pid namespace
	caps uint64 // capabilities that we can pass on

	ignored []int // signals we were told to ignore

	fork sync.RWMutex // read: a clone3 and its entry in children; write: looking at zombies, heap
	heap dontFork

	brief atomic.Int32 // launches that wait in the kernel, see Child.waitBriefly

	mu       sync.Mutex // guards all below
	children map[int]*Process
	spare    []arena // memory of programs that have run
}

// NewLauncher prepares this process for launching.
func NewLauncher() (*Launcher, error) {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open of ourselves (needs Linux 5.7 for clone3 with CLONE_INTO_CGROUP): %w", err)
	}
	caps, err := heldCapabilities()
	if err != nil {
		unix.Close(self)
		return nil, err
	}
	ignored, err := ignoredSignals()
	if err != nil {
		unix.Close(self)
		return nil, err
	}
	return &Launcher{self: self, caps: caps, ignored: ignored, children: map[int]*Process{}}, nil
}

// NewProgram returns an empty program that gives its memory back to the
// Launcher when its child has loaded the user's program. A nil Launcher makes
// programs too.
func (l *Launcher) NewProgram() (*Program, error) {
	mem := arena{}
	if l != nil {
		l.mu.Lock()
		if n := len(l.spare); n > 0 {
			mem, l.spare = l.spare[n-1], l.spare[:n-1]
		}
		l.mu.Unlock()
	}
	if mem.b == nil {
		var err error
		if mem, err = newArena(); err != nil {
			return nil, fmt.Errorf("map memory for a launch program: %w", err)
		}
	}
	p := newProgram(mem)
	p.home = l
	return p, nil
}

// NewProgram returns an empty program.
func NewProgram() (*Program, error) { return (*Launcher)(nil).NewProgram() }

// NotReused has the program's memory given back to the kernel when the child
// has loaded the user's program. A process that can trace the child may still
// have it mapped.
func (p *Program) NotReused() { p.home = nil }

// maxSpare bounds what is kept: programs are some 60 KiB.
const (
	maxSpare     = 4
	maxSpareData = 256 << 10
)

// recycle is Close for a program that no child uses any more. One that may
// still be running it must keep its own view of the memory: Close unmaps only
// ours.
func (p *Program) recycle() {
	l := p.home
	if l == nil || p.mem.b == nil || p.mem.used > maxSpareData {
		p.Close()
		return
	}
	p.mem.scrub()
	l.mu.Lock()
	keep := len(l.spare) < maxSpare
	if keep {
		l.spare = append(l.spare, p.mem)
		p.mem.b = nil
	}
	l.mu.Unlock()
	p.Close()
}

// Capabilities returns those a child can be given, as bits. In a user namespace
// of its own it has all of them. A nil Launcher has them, too.
func (l *Launcher) Capabilities() uint64 {
	if l == nil {
		return math.MaxUint64
	}
	return l.caps
}

// Children returns how many children are alive or not yet reaped.
func (l *Launcher) Children() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.children)
}

// Launch says how the child of a Program is made.
type Launch struct {
	Program    *Program
	Namespaces uint64 // CLONE_NEW* flags the child is born with
	Cgroup     int    // cgroup directory fd the child is born into (CLONE_INTO_CGROUP, Linux 5.7), or -1
	PIDNS      int    // pidfd or namespace fd whose pid namespace the child is born into, or -1
}

// Start makes the child and lets it run up to its first gate or to its end.
// On success the Child owns the Program.
func (l *Launcher) Start(x Launch) (*Child, error) {
	p := x.Program
	if p.err != nil {
		return nil, p.err
	}
	sv, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("status socket of a launch: %w", err)
	}
	theirs, status := sv[1], &statusSocket{fd: sv[0]}
	defer func() { unix.Close(theirs) }()
	files, err := p.raiseFiles()
	defer func() { closeAll(files) }()
	if err == nil && theirs < 3+p.files.n {
		var high int
		if high, err = p.raise(theirs); err == nil {
			unix.Close(theirs)
			theirs = high
		}
	}
	if err != nil {
		status.close()
		return nil, err
	}
	p.mem.setReg(regStatus, uint64(theirs))
	n, err := p.closeOthers(append([]int{theirs}, files...)...)
	if err == nil {
		n, err = p.heedSignals(n, l.ignored)
	}
	if err != nil {
		status.close()
		return nil, err
	}
	flags := x.Namespaces | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND
	if x.Cgroup >= 0 {
		flags |= unix.CLONE_INTO_CGROUP
	}
	f := p.mem.prepare(flags, x.Cgroup, x.PIDNS, l.self, n, p.n)
	proc, err := l.clone(f)
	if err != nil {
		status.close()
		return nil, err
	}
	return &Child{Process: proc, status: status, program: p}, nil
}

// clone runs the frame and registers the child before anybody can look for
// orphans.
func (l *Launcher) clone(f *frame) (*Process, error) {
	l.fork.RLock()
	for l.heap.grown() {
		l.fork.RUnlock()
		l.fork.Lock()
		err := l.heap.exclude()
		l.fork.Unlock()
		if err != nil {
			return nil, err
		}
		l.fork.RLock()
	}
	defer l.fork.RUnlock()
	pid := cloneAndRun(f)
	if pid < 0 {
		return nil, cloneError(f, unix.Errno(-pid))
	}
	return l.newProcess(int(pid), int(f.pidfd))
}

func cloneError(f *frame, e unix.Errno) error {
	switch {
	case e == unix.EOPNOTSUPP && f.clone.flags&unix.CLONE_INTO_CGROUP != 0:
		return fmt.Errorf("clone3 into cgroup: the cgroup is threaded or in a domain-invalid state: %w", e)
	case e == unix.EBUSY && f.clone.flags&unix.CLONE_INTO_CGROUP != 0:
		return fmt.Errorf("clone3 into cgroup: the cgroup has controllers enabled for children (no internal processes): %w", e)
	case e == unix.EAGAIN:
		return fmt.Errorf("clone3: pids limit of the cgroup or of the system reached: %w", e)
	case e == unix.ENOSPC:
		return fmt.Errorf("clone3: too many namespaces (see /proc/sys/user/max_*_namespaces): %w", e)
	}
	return fmt.Errorf("clone3 (%s): %w", decodeFlags(f.clone.flags, cloneFlags), e)
}

// timerSlack is the kernel's default in nanoseconds (init_task, prctl(2)). The
// thread that launches may have another: vminitd makes one of the Go runtime's
// late on purpose, and threads inherit it.
const timerSlack = 50_000

// closeOthers writes the prologue: the child closes every fd but the inputs and
// those given (the status socket, files to pass on) before it does anything
// else, so that nothing of the daemon is open when it enters a container's
// namespaces, and takes the usual timer slack. Returns the prologue's length.
func (p *Program) closeOthers(keep ...int) (int, error) {
	for _, r := range p.inputs {
		fd := p.mem.reg(r)
		if fd >= 1<<31 {
			return 0, fmt.Errorf("launch program: input %s is not bound", p.names[r])
		}
		keep = append(keep, int(fd))
	}
	slices.SortFunc(keep, cmp.Compare[int])
	if len(keep)+2 > maxCloses {
		return 0, sys.Invalidf("launch program: more than %d inputs and files", maxCloses-3)
	}
	n, from := 0, 0
	for _, fd := range keep {
		if fd > from {
			*p.mem.prologue(n) = insn{nr: unix.SYS_CLOSE_RANGE, args: [6]uint64{uint64(from), uint64(fd - 1)}}
			n++
		}
		from = fd + 1
	}
	*p.mem.prologue(n) = insn{nr: unix.SYS_CLOSE_RANGE, args: [6]uint64{uint64(from), 1<<32 - 1}}
	*p.mem.prologue(n + 1) = insn{nr: unix.SYS_PRCTL, args: [6]uint64{unix.PR_SET_TIMERSLACK, timerSlack}}
	return n + 2, nil
}
