package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/cgroup2"
	"vminit/internal/sys"
	"vminit/nsexec"
)

// Hooks (config.md, "POSIX-platform Hooks"; runtime.md, "Lifecycle"):
//
//	prestart, createRuntime  in Create, before pivot_root: programs of the guest
//	createContainer          right after them, in the container's namespaces and cgroup, with the guest's paths
//	startContainer           in Start, before the user's program and in everything like an exec of it
//	poststart                in Start, after it: programs of the guest
//	poststop                 in Delete, when all else is gone, or at the end of a Create that fails after its first hook
//
// The first that fails ends Create or Start and the container with it; only
// those of poststop all run, whatever becomes of them. Programs of the guest
// run in a cgroup that the container has for them: what they leave running is
// killed when one of them fails and when the container is deleted.

// hookNames are the hooks that are run.
var hookNames = [...]string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}

// hooksCgroup is where in the containers' tree the cgroups of hooks are. No
// namespace of a container has such a name.
const hooksCgroup = ".hooks"

// poststopGrace is how long poststop hooks may go on without their caller.
const poststopGrace = 10 * time.Second

// hookState is what a container knows of its hooks. Create, Start and Delete
// exclude each other, so that nothing guards it.
type hookState struct {
	begun  bool            // Create has come to its hooks
	cgroup *cgroup2.Cgroup // of those that are programs of the guest; nil before the first
}

// hookList returns the hooks of one name.
func hookList(h *specs.Hooks, name string) []specs.Hook {
	switch name {
	case "prestart":
		return h.Prestart //nolint:staticcheck // deprecated, not gone
	case "createRuntime":
		return h.CreateRuntime
	case "createContainer":
		return h.CreateContainer
	case "startContainer":
		return h.StartContainer
	case "poststart":
		return h.Poststart
	}
	return h.Poststop
}

func checkHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	for _, name := range hookNames {
		for i, hook := range hookList(h, name) {
			if !filepath.IsAbs(hook.Path) {
				return sys.Invalidf("hooks.%s[%d].path %q is not an absolute path", name, i, hook.Path)
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				return sys.Invalidf("hooks.%s[%d].timeout is %d: it must be greater than zero", name, i, *hook.Timeout)
			}
		}
	}
	return nil
}

// hasCreateHooks reports whether the launch has to stop before pivot_root.
func hasCreateHooks(h *specs.Hooks) bool {
	return h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0 //nolint:staticcheck // deprecated, not gone
}

// checkCgroupsPath refuses a cgroup among those of hooks.
func checkCgroupsPath(path string) error {
	if first, _, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/"); first == hooksCgroup {
		return sys.Invalidf("linux.cgroupsPath %q: %s is the daemon's own", path, hooksCgroup)
	}
	return nil
}

// createHooks runs what belongs before pivot_root, for an init that waits there.
func (c *container) createHooks(ctx context.Context, init *nsexec.Process) error {
	c.hooks.begun = true
	for _, name := range []string{"prestart", "createRuntime"} {
		if err := c.runHooks(ctx, name, c.ociState(specs.StateCreating, init.PID()), c.runtimeHook); err != nil {
			return err
		}
	}
	if len(c.spec.Hooks.CreateContainer) == 0 {
		return nil
	}
	pid, err := pidInside(init)
	if err != nil {
		return err
	}
	return c.runHooks(ctx, "createContainer", c.ociState(specs.StateCreating, pid), func(h nsexec.Hook) (*hookLaunch, error) {
		return c.containerHook(h, init)
	})
}

// startContainerHooks runs what belongs before the user's program.
func (c *container) startContainerHooks(ctx context.Context) error {
	pid, err := pidInside(c.init.handle)
	if err != nil {
		return err
	}
	return c.runHooks(ctx, "startContainer", c.ociState(specs.StateCreated, pid), c.startHook)
}

// poststartHooks runs what belongs after the user's program has been loaded. If
// it fails the container is stopped.
func (c *container) poststartHooks(ctx context.Context) error {
	err := c.runHooks(ctx, "poststart", c.ociState(specs.StateRunning, c.init.handle.PID()), c.runtimeHook)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout)
	defer cancel()
	if kill := c.cgroup.Kill(); kill != nil {
		return errors.Join(err, kill)
	}
	_, late := c.init.awaitExit(ctx)
	return errors.Join(err, late)
}

// poststopHooks runs what belongs after the container is gone, and ends what
// hooks have left behind. Failures are for the log.
func (c *container) poststopHooks(ctx context.Context) {
	if c.spec.Hooks != nil {
		ctx, cancel := outlive(ctx, poststopGrace)
		defer cancel()
		for i := range c.spec.Hooks.Poststop {
			if err := c.runHook(ctx, "poststop", i, c.ociState(specs.StateStopped, 0), c.runtimeHook); err != nil {
				c.svc.log.Warn(err.Error(), "container", c.id)
			}
		}
	}
	if err := c.endHooks(ctx); err != nil {
		c.svc.log.Error("what hooks have left behind", "container", c.id, "error", err)
	}
}

// endHooks kills what hooks that are programs of the guest have left behind.
// The next one gets a new cgroup: whoever is born by CLONE_INTO_CGROUP into one
// that has been killed before is killed, too (seen on Linux 6.18).
func (c *container) endHooks(ctx context.Context) error {
	if c.hooks.cgroup == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), deleteTimeout)
	defer cancel()
	err := removeCgroup(ctx, c.hooks.cgroup)
	c.hooks.cgroup = nil
	return err
}

// failedHooks ends the hooks of a Create that has failed and has taken
// everything back.
func (c *container) failedHooks(ctx context.Context) {
	if c.hooks.begun {
		c.poststopHooks(ctx)
	}
}

// outlive returns a context that ends some time after another.
func outlive(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(grace, func() { cancel(context.Cause(ctx)) })
		context.AfterFunc(longer, func() { timer.Stop() })
	})
	return longer, func() { stop(); cancel(nil) }
}

// runtimeHook makes a program of the guest, in the bundle's directory.
func (c *container) runtimeHook(h nsexec.Hook) (*hookLaunch, error) {
	if c.hooks.cgroup == nil {
		tree, err := c.svc.cfg.Cgroups()
		if err != nil {
			return nil, err
		}
		if c.hooks.cgroup, err = tree.Create(filepath.Join("/", hooksCgroup, c.namespace, c.id)); err != nil {
			return nil, err
		}
	}
	p, err := c.svc.cfg.Launcher.NewProgram()
	if err != nil {
		return nil, err
	}
	pl := &plan{program: p, stdio: p.SetupStdio()}
	pl.setOOMScore(nil, compileOptions{oomAdjust: c.svc.oomAdjust})
	h.Dir = c.bundle
	p.FinishHook(h)
	return &hookLaunch{plan: pl, cgroup: c.hooks.cgroup, pidns: -1}, nil
}

// containerHook makes a program with the guest's paths in the namespaces of an
// init that has not changed its root yet, which is its working directory.
func (c *container) containerHook(h nsexec.Hook, init *nsexec.Process) (*hookLaunch, error) {
	p, err := c.svc.cfg.Launcher.NewProgram()
	if err != nil {
		return nil, err
	}
	pl := &plan{program: p, stdio: p.SetupStdio()}
	pl.setOOMScore(c.spec.Process, compileOptions{oomAdjust: c.svc.oomAdjust})
	pidfd := p.Join(c.join)
	root, cwd := p.EnterPlace()
	if c.join&unix.CLONE_NEWUSER != 0 {
		p.BecomeRoot()
	}
	p.FinishHook(h)
	l := &hookLaunch{plan: pl, cgroup: c.cgroup, pidns: c.pidns(init)}
	p.Bind(pidfd, init.Pidfd())
	for reg, name := range map[nsexec.Reg]string{root: "root", cwd: "cwd"} {
		dir, err := openOf(init, name)
		if err != nil {
			l.close()
			return nil, err
		}
		l.dirs = append(l.dirs, dir)
		p.Bind(reg, int(dir.Fd()))
	}
	return l, nil
}

// startHook makes a process like the container's own, but for the program.
func (c *container) startHook(h nsexec.Hook) (*hookLaunch, error) {
	init, proc := c.init.handle, *c.spec.Process
	proc.Args, proc.Env, proc.Terminal, proc.ExecCPUAffinity = h.Args, h.Env, false, nil
	o := c.execOptions()
	o.path = h.Path
	pl, pidfd, err := compileExec(&proc, c.spec.Linux, c.join, o)
	if err != nil {
		return nil, err
	}
	pl.program.Bind(pidfd, init.Pidfd())
	l := &hookLaunch{plan: pl, cgroup: c.cgroup, pidns: c.pidns(init)}
	if l.uid, err = hostID(proc.User.UID, c.spec.Linux.UIDMappings); err == nil {
		l.gid, err = hostID(proc.User.GID, c.spec.Linux.GIDMappings)
	}
	if err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

// pidns is where processes that join the container are born, see nsexec.Launch.
func (c *container) pidns(init *nsexec.Process) int {
	if c.join&unix.CLONE_NEWPID == 0 {
		return -1
	}
	return init.Pidfd()
}

func hookError(name string, i int, path string, err error) error {
	return fmt.Errorf("%s hook %d, %s: %w", name, i, path, err)
}
