package tasksvc

import (
	"context"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// process is one process the host asked for: a container's init or an exec. Its
// fields are guarded by the container's mu unless said otherwise.
type process struct {
	container *container     // immutable
	id        string         // exec id, "" for init; immutable
	spec      *specs.Process // immutable once created; nil when config.json has none
	uris      stdioURIs      // immutable
	launched  chan struct{}  // closed when handle and io are set
	exited    chan struct{}  // closed when the exit is final and published

	planned <-chan execPlan // of an exec: compiled ahead of its start; nil once taken

	state          State
	busy           string            // the operation under way, "" if none
	child          *nsexec.Child     // init between Create and Start
	afterStartGate gateHandler       // for a gate behind the start gate; nil: there is none
	early          earlyExitDetector // holds an exit until the start is settled
	ran            bool              // its start was published
	failed         bool              // its start failed, its process is not reaped yet
	exit           nsexec.ExitStatus // valid once state is Stopped

	// handle and io are set under mu when the process is launched, and stay.
	handle *nsexec.Process
	io     *stdio
}

func newProcess(c *container, id string, spec *specs.Process, uris stdioURIs) *process {
	return &process{container: c, id: id, spec: spec, uris: uris, state: Created, launched: make(chan struct{}), exited: make(chan struct{})}
}

// name is how errors call the process.
func (p *process) name() string {
	if p.id == "" {
		return "container " + p.container.id
	}
	return "exec " + p.id + " of container " + p.container.id
}

// eventID is the id events carry: for an init the container's.
func (p *process) eventID() string {
	if p.id == "" {
		return p.container.id
	}
	return p.id
}

func (p *process) pid() uint32 {
	if p.handle == nil {
		return 0
	}
	return uint32(p.handle.PID())
}

// begin claims the process for one operation that leaves the lock; two of them
// at once would trip over each other. The caller holds mu.
func (p *process) begin(operation string, from ...State) error {
	if p.busy != "" {
		return sys.Mark(sys.ErrState, fmt.Errorf("%s: %s is under way", p.name(), p.busy))
	}
	if p.failed && operation == "start" {
		return sys.Mark(sys.ErrState, fmt.Errorf("%s: its start has failed", p.name()))
	}
	for _, s := range from {
		if p.state == s {
			p.busy = operation
			return nil
		}
	}
	return sys.Mark(sys.ErrState, fmt.Errorf("%s is %s: cannot %s it", p.name(), p.state, operation))
}

// awaitExit waits until the exit of p is final.
func (p *process) awaitExit(ctx context.Context) (nsexec.ExitStatus, error) {
	select {
	case <-p.exited:
	case <-ctx.Done():
		return nsexec.ExitStatus{}, fmt.Errorf("wait for %s: %w", p.name(), ctx.Err())
	}
	p.container.mu.Lock()
	defer p.container.mu.Unlock()
	return p.exit, nil
}

// watch waits for the end of a launched process. One goroutine per process. The
// exit is published even if something before that fails.
func (p *process) watch() {
	c := p.container
	<-p.handle.Done()
	guard(c.svc.log, "end of "+p.name(), func() {
		if p.id == "" {
			c.killRest()
		}
		p.io.drain()
	})
	guard(c.svc.log, "exit of "+p.name(), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if p.early.ended { // its start failed and took note of it
			return
		}
		p.exit = p.handle.Exit()
		if p.early.exit() {
			c.settleExit(p)
		}
	})
}
