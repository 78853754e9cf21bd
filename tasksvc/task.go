package tasksvc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"vminit/cgroup2"
	"vminit/internal/sys"
)

// freezeTimeout bounds how long the tasks of a container may take to stop.
const freezeTimeout = 10 * time.Second

var empty = &emptypb.Empty{}

// Create builds a container that waits at its start gate.
func (s *Service) Create(ctx context.Context, r *taskv3.CreateTaskRequest) (*taskv3.CreateTaskResponse, error) {
	if err := validateID("container", r.ID); err != nil {
		return nil, err
	}
	if r.Checkpoint != "" {
		return nil, sys.Unsupportedf("restoring a checkpoint is not supported")
	}
	options, err := parseCreateOptions(r.Options)
	if err != nil {
		return nil, err
	}
	c := &container{svc: s, namespace: namespaceOf(ctx), id: r.ID, bundle: r.Bundle,
		created: make(chan struct{}), execs: map[string]*process{}, exits: newExitCoordinator()}
	c.init = newProcess(c, "", nil, stdioURIs{r.Stdin, r.Stdout, r.Stderr, r.Terminal})
	c.init.busy = "create"
	if err := s.reserve(c); err != nil {
		return nil, err
	}
	defer s.creates.Done()
	if err := s.create(ctx, c, r, options); err != nil {
		s.forget(c)
		return nil, err
	}
	close(c.created)
	return &taskv3.CreateTaskResponse{Pid: c.init.pid()}, nil
}

// Start starts a container's init or an exec.
func (s *Service) Start(ctx context.Context, r *taskv3.StartRequest) (*taskv3.StartResponse, error) {
	c, p, err := s.lookup(namespaceOf(ctx), r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	c.mu.Unlock()
	var pid uint32
	if r.ExecID == "" {
		pid, err = c.start(ctx)
	} else {
		pid, err = c.startExec(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	return &taskv3.StartResponse{Pid: pid}, nil
}

// State tells where a process is in its life.
func (s *Service) State(ctx context.Context, r *taskv3.StateRequest) (*taskv3.StateResponse, error) {
	c, p, err := s.lookup(namespaceOf(ctx), r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	resp := &taskv3.StateResponse{
		ID: c.id, ExecID: p.id, Bundle: c.bundle, Pid: p.pid(), Status: p.state.status(),
		Stdin: p.uris.stdin, Stdout: p.uris.stdout, Stderr: p.uris.stderr, Terminal: p.uris.terminal,
	}
	if p.state == Stopped {
		resp.ExitStatus, resp.ExitedAt = uint32(p.exit.Code), timestamppb.New(p.exit.At)
	}
	return resp, nil
}

// Wait returns when the exit of a process is final; any number may wait.
func (s *Service) Wait(ctx context.Context, r *taskv3.WaitRequest) (*taskv3.WaitResponse, error) {
	c, p, err := s.lookup(namespaceOf(ctx), r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	c.mu.Unlock()
	exit, err := p.awaitExit(ctx)
	if err != nil {
		return nil, err
	}
	return &taskv3.WaitResponse{ExitStatus: uint32(exit.Code), ExitedAt: timestamppb.New(exit.At)}, nil
}

// Delete takes away an exec, or the container with all its execs.
func (s *Service) Delete(ctx context.Context, r *taskv3.DeleteRequest) (*taskv3.DeleteResponse, error) {
	c, p, err := s.lookup(namespaceOf(ctx), r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	c.mu.Unlock()
	if r.ExecID != "" {
		err = c.deleteExec(ctx, p)
	} else if err = c.deleteInit(ctx); err == nil {
		s.forget(c)
		s.removeBundle(c)
	}
	if err != nil {
		return nil, err
	}
	return &taskv3.DeleteResponse{Pid: p.pid(), ExitStatus: uint32(p.exit.Code), ExitedAt: timestamppb.New(p.exit.At)}, nil
}

// Kill sends a signal to one process, or to all of the container.
func (s *Service) Kill(ctx context.Context, r *taskv3.KillRequest) (*emptypb.Empty, error) {
	if r.Signal == 0 || r.Signal > 64 {
		return nil, sys.Invalidf("signal %d", r.Signal)
	}
	c, p, err := s.lookup(namespaceOf(ctx), r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	sig := unix.Signal(r.Signal)
	if p == c.init && c.ownPID && p.state == Created && p.busy == "" && slices.Contains(asksForEnd, sig) {
		sig = unix.SIGKILL
	}
	switch {
	case r.All && r.ExecID == "" && sig == unix.SIGKILL:
		return empty, c.cgroup.Kill()
	case r.All && r.ExecID == "":
		return empty, c.cgroup.Signal(sig)
	case p.handle == nil && p.state == Created:
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("%s has not been started", p.name()))
	case p.handle == nil || p.early.ended:
		return nil, sys.Mark(sys.ErrNotFound, fmt.Errorf("%s has ended", p.name()))
	}
	if err := p.handle.Signal(sig); isGone(err) {
		return nil, sys.Mark(sys.ErrNotFound, fmt.Errorf("%s has ended", p.name()))
	} else if err != nil {
		return nil, err
	}
	return empty, nil
}

// asksForEnd are signals that process 1 of a pid namespace does not get as long as
// it does not handle them, and nothing does while it waits for its start: it is
// killed instead.
var asksForEnd = []unix.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT}

func isGone(err error) bool { return errors.Is(err, os.ErrProcessDone) }

// Pids lists all processes in the container, with the exec ids of ours.
func (s *Service) Pids(ctx context.Context, r *taskv3.PidsRequest) (*taskv3.PidsResponse, error) {
	c, err := s.find(namespaceOf(ctx), r.ID)
	if err != nil {
		return nil, err
	}
	pids, err := c.cgroup.Procs()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	execs := map[uint32]string{}
	for _, p := range c.exits.live {
		execs[p.pid()] = p.id
	}
	resp := &taskv3.PidsResponse{}
	for _, pid := range pids {
		info, err := processInfo(uint32(pid), execs[uint32(pid)])
		if err != nil {
			return nil, err
		}
		resp.Processes = append(resp.Processes, info)
	}
	return resp, nil
}

// CloseIO ends a process's stdin.
func (s *Service) CloseIO(ctx context.Context, r *taskv3.CloseIORequest) (*emptypb.Empty, error) {
	c, p, err := s.lookup(namespaceOf(ctx), r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	if r.Stdin && p.io != nil {
		p.io.closeStdin()
	}
	return empty, nil
}

// ResizePty sets the size of a process's terminal.
func (s *Service) ResizePty(ctx context.Context, r *taskv3.ResizePtyRequest) (*emptypb.Empty, error) {
	c, p, err := s.lookup(namespaceOf(ctx), r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	defer c.mu.Unlock()
	if p.io == nil {
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("%s has not been started", p.name()))
	}
	return empty, p.io.resize(r.Width, r.Height)
}

// Pause freezes the container.
func (s *Service) Pause(ctx context.Context, r *taskv3.PauseRequest) (*emptypb.Empty, error) {
	return s.freeze(ctx, r.ID, "pause", Running, Paused)
}

// Resume thaws the container.
func (s *Service) Resume(ctx context.Context, r *taskv3.ResumeRequest) (*emptypb.Empty, error) {
	return s.freeze(ctx, r.ID, "resume", Paused, Running)
}

func (s *Service) freeze(ctx context.Context, id, operation string, from, to State) (*emptypb.Empty, error) {
	c, p, err := s.lookup(namespaceOf(ctx), id, "")
	if err != nil {
		return nil, err
	}
	err = p.begin(operation, from)
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	if to == Paused {
		if err = c.cgroup.Freeze(ctx); err != nil {
			err = errors.Join(err, c.cgroup.Thaw(context.WithoutCancel(ctx)))
		}
	} else {
		err = c.cgroup.Thaw(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p.busy = ""
	if err != nil {
		return nil, err
	}
	if err := p.state.enter(to); err != nil { // it has ended meanwhile
		return nil, err
	}
	if to == Paused {
		c.publish("/tasks/paused", &eventsapi.TaskPaused{ContainerID: c.id})
	} else {
		c.publish("/tasks/resumed", &eventsapi.TaskResumed{ContainerID: c.id})
	}
	return empty, nil
}

// Update changes the limits of a container.
func (s *Service) Update(ctx context.Context, r *taskv3.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.find(namespaceOf(ctx), r.ID)
	if err != nil {
		return nil, err
	}
	if r.Resources == nil {
		return nil, sys.Invalidf("update of container %s has no resources", r.ID)
	}
	resources := new(specs.LinuxResources)
	if err := json.Unmarshal(r.Resources.Value, resources); err != nil {
		return nil, sys.Invalidf("update of container %s: resources: %w", r.ID, err)
	}
	return empty, c.update(resources)
}

// update overlays resources on those in force.
func (c *container) update(resources *specs.LinuxResources) error {
	c.updating.Lock()
	defer c.updating.Unlock()
	merged, writes, err := cgroup2.PlanUpdate(c.resources, resources)
	if err != nil {
		return err
	}
	if err := c.cgroup.Update(writes); err != nil {
		return err
	}
	if len(resources.Devices) > 0 {
		if err := c.cgroup.SetDevices(merged.Devices); err != nil {
			return err
		}
	}
	c.resources = merged
	return nil
}

// Checkpoint is not supported: a microVM is saved and restored as a whole.
func (s *Service) Checkpoint(context.Context, *taskv3.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, sys.Unsupportedf("checkpoint is not supported: snapshot the microVM instead")
}

// Connect tells a host that comes back whom it talks to.
func (s *Service) Connect(ctx context.Context, r *taskv3.ConnectRequest) (*taskv3.ConnectResponse, error) {
	resp := &taskv3.ConnectResponse{ShimPid: uint32(os.Getpid()), Version: s.cfg.Version}
	if c, p, err := s.lookup(namespaceOf(ctx), r.ID, ""); err == nil {
		resp.TaskPid = p.pid()
		c.mu.Unlock()
	}
	return resp, nil
}

// Shutdown asks the daemon to end. As with containerd's own shims it is ignored
// while there are containers, unless Now is set.
func (s *Service) Shutdown(_ context.Context, r *taskv3.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || len(s.containers) > 0 && !r.Now {
		return empty, nil
	}
	s.stopping = true
	s.log.Info("shutdown asked for")
	s.cfg.Shutdown()
	return empty, nil
}

func processInfo(pid uint32, execID string) (*tasktypes.ProcessInfo, error) {
	info := &tasktypes.ProcessInfo{Pid: pid}
	if execID == "" {
		return info, nil
	}
	details, err := anypb.New(&runcoptions.ProcessDetails{ExecID: execID})
	info.Info = details
	return info, err
}
