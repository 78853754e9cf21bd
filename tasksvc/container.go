package tasksvc

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"vminit/cgroup2"
	"vminit/internal/sys"
	"vminit/nsexec"
)

// container is what Create makes and Delete takes away. mu is never held while
// waiting for the kernel, a stream or another process.
type container struct {
	svc       *Service
	namespace string
	id        string
	bundle    string

	created chan struct{} // closed when Create is done

	// Set by create before anybody else can see the container.
	spec    *specs.Spec
	join    uint64 // namespaces an exec enters, CLONE_NEW* flags
	ownPID  bool   // its pid namespace is new: whatever is in there ends with init
	cgroup  *cgroup2.Cgroup
	rdt     *rdtGroup    // nil without linux.intelRdt
	unmount func() error // the rootfs mounts, in reverse
	init    *process
	at      time.Time // when it was created

	// warnings say what of the config was passed over.
	warnings []string
	hooks    hookState

	// mu guards execs, exits, ooms, lastExec, and the processes' fields.
	mu       sync.Mutex
	execs    map[string]*process
	exits    exitCoordinator
	ooms     uint64    // kills already published
	lastExec *execSpec // nil if there was none

	reads atomic.Int32 // of files on what the container has mounted, under way

	updating  sync.Mutex            // held during an update; guards resources
	resources *specs.LinuxResources // the limits in force
}

// process finds a process by exec id, "" being init. The caller holds mu.
func (c *container) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	if p, ok := c.execs[execID]; ok {
		return p, nil
	}
	return nil, sys.Mark(sys.ErrNotFound, fmt.Errorf("exec %s of container %s not found", execID, c.id))
}

// killRest ends what init has left behind: without a pid namespace of its own the
// kernel does not.
func (c *container) killRest() {
	if c.ownPID {
		return
	}
	if err := c.cgroup.Kill(); err != nil {
		c.svc.log.Warn("kill what init left behind", "container", c.id, "error", err)
	}
}

// settleStart ends a start: it publishes that the process runs, or takes note
// that it never will. An exit that came meanwhile follows. The caller holds mu.
func (c *container) settleStart(p *process, failure error) {
	p.busy = ""
	if failure == nil {
		p.ran = true
		if err := p.state.enter(Running); err != nil {
			c.svc.log.Error("start in the wrong state", "process", p.name(), "error", err)
		}
		if p.id == "" {
			c.publish("/tasks/start", &eventsapi.TaskStart{ContainerID: c.id, Pid: p.pid()})
		} else {
			c.publish("/tasks/exec-started", &eventsapi.TaskExecStarted{ContainerID: c.id, ExecID: p.id, Pid: p.pid()})
		}
	}
	switch {
	case p.handle == nil: // it never came to a process
		p.exit = nsexec.ExitStatus{Code: 255, At: time.Now()}
		p.early.ended = true
	case failure != nil && p.handle.Reaped():
		p.exit = p.handle.Exit()
		p.early.ended = true
	case failure != nil:
		p.failed = true
	}
	if p.early.settled() {
		c.settleExit(p)
	}
}

// settleExit publishes an exit, and those that waited for it. The caller holds mu.
func (c *container) settleExit(p *process) {
	if err := p.state.enter(Stopped); err != nil {
		c.svc.log.Error("exit in the wrong state", "process", p.name(), "error", err)
	}
	if !p.ran {
		close(p.exited)
		c.publishExits(c.exits.neverStarted(p))
		return
	}
	c.publishExits(c.exits.ended(p))
}

func (c *container) publishExits(released []*process) {
	for _, p := range released {
		c.publishOOM()
		c.publish("/tasks/exit", &eventsapi.TaskExit{
			ContainerID: c.id, ID: p.eventID(), Pid: p.pid(),
			ExitStatus: uint32(p.exit.Code), ExitedAt: timestamppb.New(p.exit.At),
		})
		close(p.exited)
	}
}

// publishOOM publishes an OOM event if the kernel has killed since the last
// look, so that it comes before the exit it caused. The caller holds mu.
func (c *container) publishOOM() {
	kills, err := c.cgroup.OOMKills()
	if err != nil || kills <= c.ooms {
		return // no memory controller, or nothing new
	}
	c.ooms = kills
	c.publish("/tasks/oom", &eventsapi.TaskOOM{ContainerID: c.id})
}

func (c *container) publish(topic string, event proto.Message) {
	if err := c.svc.cfg.Events.Publish(c.namespace, topic, event); err != nil {
		c.svc.log.Error("publish event", "topic", topic, "container", c.id, "error", err)
	}
}
