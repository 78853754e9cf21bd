package tasksvc

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/cgroup2"
	"vminit/internal/sys"
	"vminit/nsexec"
	"vminit/rootfs"
)

// launchTimeout bounds how long a child may take from clone3 to a gate or to
// its program. A child born into a frozen cgroup would take for ever.
const launchTimeout = 60 * time.Second

// undo is what has to be taken back if an operation fails half-way.
type undo []func()

func (u *undo) add(f func()) { *u = append(*u, f) }

func (u *undo) run() {
	for i := len(*u) - 1; i >= 0; i-- {
		(*u)[i]()
	}
}

// create builds a container up to its start gate. Whatever fails, nothing stays
// behind.
func (s *Service) create(ctx context.Context, c *container, r *taskv3.CreateTaskRequest, o createOptions) (err error) {
	var back undo
	defer func() {
		if err != nil {
			back.run()
			c.failedHooks(ctx)
		}
	}()
	ns, err := s.prepare(ctx, c, r, &back)
	if err != nil {
		return err
	}
	p := c.init
	given, err := takeHandover(ctx, s.cfg.Streams, p.uris)
	if err != nil {
		return err
	}
	back.add(given.close)
	network := s.takeNetwork(ns)
	defer func() {
		network.Close() // nil does not mind
		s.refill.Reset(refillDelay)
	}()
	pl, err := s.planInit(ctx, c, ns, given, network, o)
	if err != nil {
		return err
	}
	back.add(func() { pl.program.Close() })
	if p.io, err = p.openStdio(ctx, o, given); err != nil {
		return err
	}
	back.add(p.io.close)
	if err := s.launchInit(ctx, c, p, pl, ns, &back); err != nil {
		return err
	}
	// Not before: the child has made the container's device nodes and mounted
	// its disks, which the workload that follows need not be allowed to open.
	if err := c.cgroup.SetDevices(c.resources.Devices); err != nil {
		return err
	}
	if err := s.mayCreate(); err != nil {
		return err
	}
	given.close() // a container lives on without its client
	s.created(c, r, pl)
	return nil
}

// prepare reads the config and makes what the first process will find: files,
// the root file system, the cgroup.
func (s *Service) prepare(ctx context.Context, c *container, r *taskv3.CreateTaskRequest, back *undo) (ns namespaces, err error) {
	if c.spec, err = loadSpec(c.bundle); err != nil {
		return ns, err
	}
	c.init.spec = c.spec.Process
	if err := s.awaitGuest(ctx, c.spec, r.Rootfs); err != nil {
		return ns, err
	}
	if ns, err = parseNamespaces(c.spec.Linux.Namespaces); err != nil {
		return ns, err
	}
	ns.dropGuests()
	c.join, c.ownPID = ns.all(), ns.fresh&unix.CLONE_NEWPID != 0
	if err := makeEtcFiles(c.bundle, c.spec, back); err != nil {
		return ns, err
	}
	if err := s.mountRootfs(ctx, c, r, back); err != nil {
		return ns, err
	}
	if err := s.makeCgroup(c, back); err != nil {
		return ns, err
	}
	if err := c.delegateCgroup(ns); err != nil {
		return ns, err
	}
	return ns, c.makeRdt(back)
}

// planInit compiles the launch of the first process.
func (s *Service) planInit(ctx context.Context, c *container, ns namespaces, given *handover, network *os.File, o createOptions) (*plan, error) {
	spec := *c.spec
	spec.Process = given.environ(c.spec.Process)
	connections, err := loadNWConfig(c.bundle)
	if err != nil {
		return nil, err
	}
	pl, err := compileInit(&spec, ns, compileOptions{
		id:        c.id,
		bundle:    c.bundle,
		cgroup:    filepath.Join(s.cfg.CgroupMount, c.cgroup.Path()),
		network:   network != nil,
		keyring:   o.keyring(c.id),
		seccomp:   &s.seccomp,
		launcher:  s.cfg.Launcher,
		oomAdjust: s.oomAdjust,
		tasks:     c.rdt.taskFiles(),
		files:     len(given.files()),
		hooks:     func(child *nsexec.Child, _ *nsexec.Registers) error { return c.createHooks(ctx, child.Process) },
		connect:   connections,
		listener:  c.takeListener,
		traced:    c.mayTrace(c.spec.Process),
	})
	if err == nil && network != nil {
		pl.program.Bind(pl.network, int(network.Fd()))
	}
	return pl, err
}

// created makes the container known whose first process stands at its gate.
func (s *Service) created(c *container, r *taskv3.CreateTaskRequest, pl *plan) {
	for _, w := range pl.warnings {
		s.log.Warn(w, "container", c.id)
	}
	c.warnings, c.at = pl.warnings, time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.init
	p.busy = ""
	close(p.launched)
	c.exits.launched(p)
	c.publish("/tasks/create", &eventsapi.TaskCreate{
		ContainerID: c.id, Bundle: c.bundle, Rootfs: r.Rootfs, Checkpoint: r.Checkpoint, Pid: p.pid(),
		IO: &eventsapi.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
	go p.watch()
}

// refillDelay is how long after a create the next network namespace is made:
// long enough not to delay a create that follows at once; such creates have
// clone3 make their namespace.
const refillDelay = 20 * time.Millisecond

// spareNetwork has the next container find a network namespace ready.
func (s *Service) spareNetwork() {
	if err := s.network.Fill(); err != nil { // clone3 makes them then, or says why it cannot
		s.log.Debug("no network namespace is kept ready", "error", err)
	}
}

// takeNetwork takes the network namespace that is kept ready, if the container is
// to have a new one; nil if there is none. One with a user namespace needs one
// that belongs to that.
func (s *Service) takeNetwork(ns namespaces) *os.File {
	if ns.fresh&unix.CLONE_NEWNET == 0 || ns.all()&unix.CLONE_NEWUSER != 0 {
		return nil
	}
	return s.network.Take()
}

// mountRootfs mounts what the host sent along and points root.path at it.
func (s *Service) mountRootfs(ctx context.Context, c *container, r *taskv3.CreateTaskRequest, back *undo) error {
	mounts := make([]rootfs.Mount, 0, len(r.Rootfs))
	for _, m := range r.Rootfs {
		mounts = append(mounts, rootfs.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	unmount, err := rootfs.Assemble(ctx, s.cfg.Launcher, c.bundle, mounts)
	if err != nil {
		return err
	}
	c.unmount = unmount
	back.add(func() {
		if err := unmount(); err != nil {
			s.log.Error("unmount after a failed create", "container", c.id, "error", err)
		}
	})
	if len(mounts) > 0 {
		c.spec.Root.Path = filepath.Join(c.bundle, "rootfs")
	}
	return nil
}

// makeCgroup makes the container's cgroup with its limits.
func (s *Service) makeCgroup(c *container, back *undo) (err error) {
	l := c.spec.Linux
	path := l.CgroupsPath
	if path == "" {
		path = filepath.Join("/", c.namespace, c.id)
	}
	if err := checkCgroupsPath(path); err != nil {
		return err
	}
	tree, err := s.cfg.Cgroups()
	if err != nil {
		return err
	}
	if c.cgroup, err = tree.Create(path); err != nil {
		return err
	}
	back.add(func() {
		ctx, cancel := context.WithTimeout(context.Background(), deleteTimeout)
		defer cancel()
		if err := removeCgroup(ctx, c.cgroup); err != nil {
			s.log.Error("remove cgroup after a failed create", "container", c.id, "error", err)
		}
	})
	resources := l.Resources
	if resources == nil {
		resources = &specs.LinuxResources{}
	}
	writes, err := cgroup2.Plan(resources)
	if err != nil {
		return err
	}
	if err := c.cgroup.Apply(writes); err != nil {
		return err
	}
	c.resources = resources
	return nil
}

// makeRdt makes the container's group in resctrl.
func (c *container) makeRdt(back *undo) error {
	config := c.spec.Linux.IntelRdt
	if config == nil {
		return nil
	}
	r, err := findResctrl()
	if err != nil {
		return err
	}
	if c.rdt, err = r.group(c.id, config); err != nil {
		return err
	}
	back.add(func() {
		if err := c.rdt.release(); err != nil {
			c.svc.log.Error("after a failed create", "container", c.id, "error", err)
		}
	})
	return nil
}

// removeCgroup kills what is inside and removes the directory.
func removeCgroup(ctx context.Context, c *cgroup2.Cgroup) error {
	if c == nil {
		return nil
	}
	if err := errors.Join(c.Kill(), c.Delete(ctx)); err != nil {
		return err
	}
	return c.Close()
}

// openStdio opens the process's stdio, owned by its user.
func (p *process) openStdio(ctx context.Context, o createOptions, given *handover) (*stdio, error) {
	c, uid, gid := p.container, o.ioUID, o.ioGID
	if p.spec != nil && p.uris.terminal != p.spec.Terminal {
		return nil, sys.Invalidf("terminal is %t in the request and %t in the config", p.uris.terminal, p.spec.Terminal)
	}
	if uid == 0 && gid == 0 && p.spec != nil {
		var err error
		if uid, err = hostID(p.spec.User.UID, c.spec.Linux.UIDMappings); err != nil {
			return nil, err
		}
		if gid, err = hostID(p.spec.User.GID, c.spec.Linux.GIDMappings); err != nil {
			return nil, err
		}
	}
	io, err := openStdio(ctx, c.svc.cfg.Streams, p.uris, given, uid, gid)
	if err != nil {
		return nil, err
	}
	if err := io.startLoggers(ctx, p); err != nil {
		io.close()
		return nil, err
	}
	return io, nil
}
