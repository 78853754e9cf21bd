package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// start opens the start gate of the container's init. The hooks of startContainer
// come before its program, those of poststart after it.
func (c *container) start(ctx context.Context) (uint32, error) {
	p, hooks := c.init, c.spec.Hooks
	c.mu.Lock()
	if err := p.begin("start", Created); err != nil {
		c.mu.Unlock()
		return 0, err
	}
	p.early.starting = true
	child := p.child
	p.child = nil
	c.mu.Unlock()

	var err error
	if hooks != nil && len(hooks.StartContainer) > 0 && p.spec != nil {
		err = c.startContainerHooks(ctx)
	}
	if err == nil {
		err = child.Open()
	}
	if err == nil {
		c.watchOOM() // while the child loads its program
		err = load(child, p.afterStartGate)
	}
	if err != nil {
		endFailed(child)
	}
	if errors.Is(err, nsexec.ErrDied) { // killed
		err = sys.Mark(sys.ErrState, err)
	}
	c.mu.Lock()
	c.settleStart(p, err)
	if err != nil || hooks == nil || len(hooks.Poststart) == 0 {
		c.mu.Unlock()
		return p.pid(), err
	}
	p.busy = "start" // not to be paused or deleted meanwhile
	c.mu.Unlock()

	err = c.poststartHooks(ctx)
	c.mu.Lock()
	p.busy = ""
	c.mu.Unlock()
	return p.pid(), err
}

// endFailed ends a child whose start has failed and waits a moment until it is
// reaped, so that the process is known to be stopped when the host is told.
func endFailed(child *nsexec.Child) {
	child.Abandon()
	_ = child.Signal(unix.SIGKILL)
	select {
	case <-child.Done():
	case <-time.After(reapTimeout): // stuck in the kernel: watch takes note of its end
	}
}

const reapTimeout = time.Second

// startExec makes the exec's process inside the container.
func (c *container) startExec(ctx context.Context, p *process) (uint32, error) {
	c.mu.Lock()
	err := c.mayExec()
	if err == nil {
		err = p.begin("start", Created)
	}
	if err != nil {
		c.mu.Unlock()
		return 0, err
	}
	p.early.starting = true
	c.exits.starting(p)
	c.mu.Unlock()

	err = c.launchExec(ctx, p)
	if err != nil && c.dies(err) {
		err = sys.Mark(sys.ErrState, fmt.Errorf("container %s has ended: %w", c.id, err))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settleStart(p, err)
	return p.pid(), err
}

// dies reports whether the start of an exec failed because the container's init
// was ending, which shows in many ways (ESRCH, ENOENT, ENOMEM) before the init can
// be waited for: that is only when all others in its pid namespace are gone.
func (c *container) dies(failure error) bool {
	var step *nsexec.StepError
	switch {
	case errors.Is(failure, nsexec.ErrDied):
		return true
	case errors.As(failure, &step) && step.Syscall == "": // the program is not there, say
		return c.init.handle.Reaped()
	case exiting(c.init.handle):
		return true
	}
	select {
	case <-c.init.handle.Done():
		return true
	case <-time.After(dyingTime):
		return false
	}
}

const dyingTime = 20 * time.Millisecond

// pfExiting is PF_EXITING of include/linux/sched.h: the process is in do_exit.
const pfExiting = 4

// exiting reports whether a process has ended or is about to.
func exiting(p *nsexec.Process) bool {
	var st procStat
	err := p.WhileAlive(func(pid int) (err error) {
		st, err = readStat("/proc/" + strconv.Itoa(pid) + "/stat")
		return err
	})
	return err == os.ErrProcessDone || err == nil && st.flags&pfExiting != 0
}

// mayExec says whether the container takes a new process. The caller holds mu.
func (c *container) mayExec() error {
	switch p := c.init; {
	case p.early.ended || p.state == Stopped:
		return sys.Mark(sys.ErrState, fmt.Errorf("container %s has ended", c.id))
	case p.state != Running: // also: its namespaces are final once init has exec'd
		return sys.Mark(sys.ErrState, fmt.Errorf("container %s is %s", c.id, p.state))
	}
	return nil
}

// launchExec takes an exec from nothing to its program.
func (c *container) launchExec(ctx context.Context, p *process) (err error) {
	var back undo
	defer func() {
		if err != nil {
			back.run()
		}
	}()
	init := c.init.handle
	given, err := takeHandover(ctx, c.svc.cfg.Streams, p.uris)
	if err != nil {
		return err
	}
	back.add(given.close)
	x := p.takePlan(ctx, given)
	if x.err != nil {
		return x.err
	}
	pl := x.plan
	back.add(func() { pl.program.Close() })
	io, err := p.openStdio(ctx, createOptions{}, given)
	if err != nil {
		return err
	}
	back.add(io.close)
	bindStdio(pl, io)
	pl.program.Bind(x.container, init.Pidfd())
	child, err := c.cloneExec(pl, init)
	if err != nil {
		return err
	}
	var regs *nsexec.Registers
	if pl.late != nil { // the process is another from here on
		if regs, err = pl.handleGates(child); err == nil {
			err = child.Follow(regs, *pl.late)
		}
		if err != nil {
			reapFailed(child)
			return err
		}
	}
	back.add(func() { endFailed(child) })
	c.mu.Lock()
	p.handle, p.io = child.Process, io
	close(p.launched)
	c.exits.launched(p)
	c.mu.Unlock()
	defer func() { go p.watch() }() // not while the child wants to run: a thread wakes for it
	for _, w := range pl.warnings {
		c.svc.log.Warn(w, "process", p.name())
	}
	if err := pl.run(child, regs, func(regs *nsexec.Registers) error { return p.connect(pl, regs) }); err != nil {
		return err
	}
	if given != nil {
		go c.forgetWhenLeft(p, given.stream)
	}
	return nil
}

// cloneExec makes the exec's process in the container's cgroup, or, where that
// takes no processes because the container has made others below it, in init's.
func (c *container) cloneExec(pl *plan, init *nsexec.Process) (*nsexec.Child, error) {
	launch := nsexec.Launch{Program: pl.program, Cgroup: int(c.cgroup.Dir().Fd()), PIDNS: -1}
	if c.join&unix.CLONE_NEWPID != 0 && pl.late == nil {
		launch.PIDNS = init.Pidfd()
	}
	if pl.procs != 0 { // it moves there by itself
		procs, err := c.openProcs()
		if err != nil {
			return nil, err
		}
		defer procs.Close()
		pl.program.Bind(pl.procs, int(procs.Fd()))
		launch.Cgroup = -1
	}
	child, err := c.svc.cfg.Launcher.Start(launch)
	if launch.Cgroup < 0 || !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EOPNOTSUPP) {
		return child, err
	}
	dir, below := c.initsCgroup()
	if below != nil {
		return nil, errors.Join(err, below)
	}
	defer dir.Close()
	launch.Cgroup = int(dir.Fd())
	return c.svc.cfg.Launcher.Start(launch)
}

// execOptions are those that all processes have which join the container.
func (c *container) execOptions() compileOptions {
	return compileOptions{
		id: c.id, keyring: newKeyring(c.id), seccomp: &c.svc.seccomp, launcher: c.svc.cfg.Launcher, oomAdjust: c.svc.oomAdjust, tasks: c.rdt.taskFiles(), listener: c.takeListener,
	}
}

// takeListener hands the seccomp listener of one of the container's processes
// to the agent.
func (c *container) takeListener(p *nsexec.Process, fd int) error {
	status, pid := specs.StateCreating, p.PID()
	select {
	case <-c.created:
		c.mu.Lock()
		status, pid = c.init.state.OCI(), int(c.init.pid())
		c.mu.Unlock()
	default:
	}
	return sendListener(c.spec.Linux.Seccomp, p, fd, c.ociState(status, pid))
}
