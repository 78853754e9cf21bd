package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"vminit/cgroup2"
	"vminit/cmd/vminitd/boot"
	"vminit/cmd/vminitd/power"
	"vminit/internal/sys"
	"vminit/nsexec"
	"vminit/tasksvc"
	"vminit/vsockstream"
)

const bundleRoot = "/run/bundles"

// services is what runs behind the two ports.
type services struct {
	server *tasksvc.Server
	tasks  *tasksvc.Service
	events *tasksvc.Exchange
	hub    *vsockstream.Hub
	fwds   *tasksvc.SocketForward
	guest  *tasksvc.Guest
	cancel context.CancelFunc // ends what runs in the background
	run    sync.WaitGroup
}

// serviceConfig is what the services are made of.
type serviceConfig struct {
	Options  options
	Version  string
	Log      *slog.Logger
	Timeline *boot.Timeline
	// Transport is closed when there is a vsock to listen on; nil: there is.
	Transport <-chan struct{}
	// Settled and Complete are closed as boot goes on after serving. What starts
	// a container waits for them (see tasksvc.Config), everything else does not.
	Settled, Complete <-chan struct{}
	// Shutdown asks for the end of the machine, or outside a VM of the daemon.
	Shutdown func(action power.Action, reason string)
}

// bootSpans translates the timeline for the Guest service.
func (c serviceConfig) bootSpans() (spans []tasksvc.BootSpan) {
	for _, e := range c.Timeline.Entries() {
		spans = append(spans, tasksvc.BootSpan{Name: e.Name, Start: e.Start, End: e.End, Err: e.Err})
	}
	return spans
}

// serve makes the services, opens their listeners and returns; they run until
// they are stopped.
func serve(c serviceConfig) (*services, error) {
	launcher, err := nsexec.NewLauncher()
	if err != nil {
		return nil, err
	}
	s, err := newServices(c, launcher)
	if err != nil {
		return nil, err
	}
	s.server.Answered(func() { c.Timeline.Mark("first answer") })
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.background(ctx, c.Log, "reaper", func() error { launcher.ReapOrphans(ctx); return nil })
	if c.Transport != nil { // the services have been made meanwhile
		<-c.Transport
	}
	if err := s.open(ctx, c); err != nil {
		return nil, errors.Join(err, s.stop(ctx))
	}
	if c.Options.DebugShell != 0 {
		s.openDebugShell(ctx, c, launcher)
	}
	return s, nil
}

// newServices makes the services; nobody can reach them yet.
func newServices(c serviceConfig, launcher *nsexec.Launcher) (*services, error) {
	framing, err := vsockstream.ParseFraming(string(c.Options.StreamID))
	if err != nil {
		return nil, err
	}
	s := &services{
		events: tasksvc.NewExchange(c.Log),
		hub:    vsockstream.NewHub(vsockstream.HubConfig{Framing: framing, Logger: c.Log}),
	}
	s.fwds = tasksvc.NewSocketForward(s.hub, framing, c.Log)
	mount, bundles := c.cgroupMount(), tasksvc.NewBundles(bundleRoot)
	if s.tasks, err = s.newTasks(c, launcher, mount, bundles); err != nil {
		return nil, err
	}
	s.guest = tasksvc.NewGuest(tasksvc.GuestConfig{
		Events: s.events, Tasks: s.tasks, Streams: s.hub, Boot: c.bootSpans, Cgroup: mount + "/" + c.Options.CgroupTree, Logger: c.Log,
	})
	s.server, err = tasksvc.NewServer(c.Log,
		s.tasks.Register,
		bundles.Register,
		tasksvc.NewStdIO(s.tasks).Register,
		s.fwds.Register,
		tasksvc.NewRuntime(s.tasks, c.Options.Listen != "").Register,
		tasksvc.NewTransfer(s.tasks, s.hub).Register,
		tasksvc.NewSystem(c.Version, "/sys").Register,
		tasksvc.NewEvents(s.events, c.Log).Register,
		tasksvc.NewMounts(c.Settled, c.Complete).Register,
		s.guest.Register,
	)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// newTasks makes the Task service. The tree of cgroups is opened when it is first
// needed, by a daemon on demand at once: another may live there.
func (s *services) newTasks(c serviceConfig, launcher *nsexec.Launcher, mount string, bundles *tasksvc.Bundles) (*tasksvc.Service, error) {
	cgroups := sync.OnceValues(func() (*cgroup2.Tree, error) { return c.openTree(mount) })
	if c.Options.IdleLock != "" {
		// Other reasons not to have a tree are for those who want a container.
		if _, err := cgroups(); errors.Is(err, sys.ErrState) {
			return nil, err
		}
	}
	return tasksvc.NewService(tasksvc.Config{
		Launcher:    launcher,
		Cgroups:     cgroups,
		CgroupMount: mount,
		Streams:     s.hub,
		Events:      s.events,
		Bundles:     bundles,
		Settled:     c.Settled,
		Complete:    c.Complete,
		Shutdown:    func() { c.Shutdown(power.Off, "the host asked for it") },
		Version:     c.Version,
		Logger:      c.Log,
	})
}

// open opens the listeners, or dials, as the flags say.
func (s *services) open(ctx context.Context, c serviceConfig) error {
	o := c.Options
	cid := fmt.Sprint(o.CID)
	rpc, stream := fmt.Sprintf("vsock://%s:%d", cid, o.RPCPort), fmt.Sprintf("vsock://%s:%d", cid, o.StreamPort)
	if o.Listen != "" {
		rpc, stream = "unix://"+o.Listen, ""
	}
	if o.StreamListen != "" {
		stream = "unix://" + o.StreamListen
	}
	if stream != "" {
		l, err := c.listen(stream)
		if err != nil {
			return err
		}
		s.background(ctx, c.Log, "stream port", func() error { return s.hub.Serve(ctx, l) })
	}
	if o.EventsForward != "" {
		f, err := tasksvc.NewForwarder(s.events, o.EventsForward, c.Log)
		if err != nil {
			return err
		}
		s.background(ctx, c.Log, "events forward", func() error { return f.Run(ctx) })
	}
	if o.RPC == rpcDial {
		conn, err := vsockstream.Dial(ctx, fmt.Sprintf("vsock://2:%d", o.RPCPort))
		if err != nil {
			return err
		}
		s.background(ctx, c.Log, "control connection", func() error { s.server.ServeConn(ctx, conn); return nil })
		return nil
	}
	l, err := c.listen(rpc)
	if err != nil {
		return err
	}
	s.background(ctx, c.Log, "control port", func() error { return s.server.Serve(ctx, l) })
	return nil
}

// openDebugShell opens the port of the debug shell. The guest does without if
// that is not possible.
func (s *services) openDebugShell(ctx context.Context, c serviceConfig, launcher *nsexec.Launcher) {
	if c.Options.outsideVM() {
		c.Log.Warn("-debug-shell ignored: it is for guests")
		return
	}
	l, err := c.listen(fmt.Sprintf("vsock://%d:%d", c.Options.CID, c.Options.DebugShell))
	if err != nil {
		c.Log.Error("debug shell", "err", err)
		return
	}
	shell := &debugShell{launcher: launcher, log: c.Log, settled: c.Settled}
	s.background(ctx, c.Log, "debug shell", func() error { return shell.serve(ctx, l) })
}

// listen listens on an address. Where the machine turns out to have another
// context id than -vsock-cid says, it listens on all it has: who may connect is
// checked for each connection anyway, and a guest that cannot be reached is of
// no use.
func (c serviceConfig) listen(address string) (net.Listener, error) {
	config := vsockstream.ListenConfig{AllowLocal: c.Options.AllowLocal, Logger: c.Log}
	l, err := config.Listen(address)
	if err == nil || !errors.Is(err, unix.EADDRNOTAVAIL) {
		return l, err
	}
	c.Log.Warn("listening on every context id instead", "err", err)
	_, port, _ := strings.Cut(strings.TrimPrefix(address, "vsock://"), ":")
	return config.Listen("vsock://any:" + port)
}

// background runs fn until the services are stopped and logs an early end. A
// panic in it does not end the guest: fn is started again.
func (s *services) background(ctx context.Context, log *slog.Logger, name string, fn func() error) {
	s.run.Go(func() {
		for {
			err := tasksvc.Guard(log, name, fn)
			if err != nil && !errors.Is(err, ttrpc.ErrServerClosed) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.Canceled) {
				log.Error(name+" has ended", "error", err)
			}
			if !errors.Is(err, tasksvc.ErrPanic) {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second): // not all of the CPU for a lasting failure
			}
		}
	})
}

// stop refuses new containers and ends those there are.
func (s *services) stop(ctx context.Context) error {
	s.guest.Close() // a process that writes to a frozen file system cannot end
	return s.tasks.Stop(ctx)
}

// drain waits until the events and answers that are under way have been handed
// to the host, then closes the ports.
func (s *services) drain(ctx context.Context) error {
	err := s.events.Drain(ctx)
	s.events.Close() // ends the hosts' event streams, for which Shutdown would wait
	s.fwds.Close()   // and those of SocketForward
	err = errors.Join(err, s.server.Shutdown(ctx), s.hub.Close())
	s.cancel()
	return err
}
