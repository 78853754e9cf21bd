package tasksvc

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

// launchInit runs the plan up to the start gate.
func (s *Service) launchInit(ctx context.Context, c *container, p *process, pl *plan, ns namespaces, back *undo) error {
	bindStdio(pl, p.io)
	pidns := -1
	for reg, flag := range pl.files {
		f, err := openNamespace(flag, ns.byPath[flag])
		if err != nil {
			return err
		}
		defer f.Close()
		pl.program.Bind(reg, int(f.Fd()))
	}
	if path, ok := ns.byPath[unix.CLONE_NEWPID]; ok && !ns.mixed() {
		f, err := openNamespace(unix.CLONE_NEWPID, path)
		if err != nil {
			return err
		}
		defer f.Close()
		pidns = int(f.Fd())
	}
	child, err := s.cfg.Launcher.Start(nsexec.Launch{Program: pl.program, Namespaces: pl.clone, Cgroup: int(c.cgroup.Dir().Fd()), PIDNS: pidns})
	if err != nil {
		return err
	}
	back.add(func() { reapFailed(child) })
	regs, err := pl.handleGates(child)
	if err != nil {
		return err
	}
	p.child, p.handle, p.afterStartGate = child, child.Process, pl.afterStartGate // a gate may have changed it
	if err := pl.outside.apply(p.handle); err != nil {
		return err
	}
	if pl.home {
		home, err := c.homeOf(ctx, p.handle, p.spec.User.UID)
		if err == nil {
			err = pl.program.SetHome(home)
		}
		if err != nil {
			return err
		}
	}
	return p.connect(pl, regs)
}

// handleGates helps the child at its gates until it stands at the last one.
func (pl *plan) handleGates(child *nsexec.Child) (*nsexec.Registers, error) {
	for {
		regs, err := child.AwaitGate(time.Now().Add(launchTimeout))
		if err != nil || regs.Gate() == pl.last {
			return regs, err
		}
		do := pl.gates[regs.Gate()]
		if do == nil {
			return nil, fmt.Errorf("launch: no handler for gate %d", regs.Gate())
		}
		if err := do(child, regs); err != nil {
			return nil, err
		}
		if err := child.Open(); err != nil {
			return nil, err
		}
	}
}

// run takes a launched child that has no start gate to its program. ready is
// called when it stands at its last gate, or at once if there is none; regs are
// not nil if it stands there already.
func (pl *plan) run(child *nsexec.Child, regs *nsexec.Registers, ready func(*nsexec.Registers) error) error {
	if pl.gated {
		if regs == nil {
			var err error
			if regs, err = pl.handleGates(child); err != nil {
				return err
			}
		}
		if err := pl.outside.apply(child.Process); err != nil {
			return err
		}
	}
	if err := ready(regs); err != nil {
		return err
	}
	if pl.gated {
		if err := child.Open(); err != nil {
			return err
		}
	}
	return load(child, pl.afterStartGate)
}

// load takes a child that has passed its last gate to its program. after is
// what is to be done at one more gate, nil if there is none.
func load(child *nsexec.Child, after gateHandler) error {
	if after != nil {
		regs, err := child.AwaitGate(time.Now().Add(launchTimeout))
		if err != nil {
			return err
		}
		if err := after(child, regs); err != nil {
			return err
		}
		if err := child.Open(); err != nil {
			return err
		}
	}
	return child.AwaitExec(time.Now().Add(launchTimeout))
}

// apply makes the settings of a child that waits at its last gate.
func (o *outside) apply(child *nsexec.Process) error {
	if o == nil {
		return nil
	}
	err := child.WhileAlive(func(pid int) error {
		if o.oomScore != nil {
			if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), fmt.Append(nil, *o.oomScore), 0); err != nil {
				return fmt.Errorf("set the OOM score: %w", err)
			}
		}
		for _, file := range o.tasks {
			if err := appendLine(file, strconv.Itoa(pid)); err != nil {
				return fmt.Errorf("linux.intelRdt: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return o.limits.Apply(child)
}

func bindStdio(pl *plan, io *stdio) {
	for i, r := range pl.stdio {
		pl.program.Bind(r, io.fd(i))
	}
	pl.program.BindFiles(io.given.files())
}

// connect starts the pumps of a process that stands at its last gate, or has
// been launched without one.
func (p *process) connect(pl *plan, regs *nsexec.Registers) error {
	if pl.terminal {
		master, err := p.handle.GetFd(regs.Fd(pl.tty))
		if err != nil {
			return err
		}
		if p.io.given != nil {
			if err := p.io.given.passConsole(master, p.spec.ConsoleSize); err != nil {
				return err
			}
			p.io.start()
			return nil
		}
		if err := p.io.attachTerminal(master); err != nil {
			return err
		}
		if size := p.spec.ConsoleSize; size != nil {
			if err := p.io.resize(uint32(size.Width), uint32(size.Height)); err != nil {
				return err
			}
		}
	}
	p.io.start()
	return nil
}

// reapFailed ends a child of a failed launch and waits until it is reaped.
func reapFailed(child *nsexec.Child) {
	child.Abandon()
	_ = child.Signal(unix.SIGKILL)
	select {
	case <-child.Done():
		_ = child.Process.Close()
	case <-time.After(deleteTimeout): // stuck in the kernel: the reaper's, when it ends
	}
}
