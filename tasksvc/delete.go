package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"vminit/internal/sys"
)

// deleteTimeout bounds a delete whose caller sets no deadline: a process stuck
// in the kernel must not hold it for ever. A later Delete tries again.
const deleteTimeout = 15 * time.Second

// deleteInit takes away the container. One that was created and never started
// is killed first; one that runs is refused.
func (c *container) deleteInit(caller context.Context) error {
	p := c.init
	ctx, cancel := context.WithTimeout(caller, deleteTimeout)
	defer cancel()
	c.mu.Lock()
	if err := p.begin("delete", Created, Stopped); err != nil {
		c.mu.Unlock()
		return err
	}
	created := p.state == Created
	execs := make([]*process, 0, len(c.execs))
	for _, e := range c.execs {
		execs = append(execs, e)
		if e.state == Created && e.handle == nil && e.busy == "" { // nobody else will say that it never runs
			c.settleStart(e, errNeverStarted)
		}
	}
	c.mu.Unlock()

	err := c.teardown(ctx, p, execs, created)
	if err == nil {
		c.poststopHooks(caller)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p.busy = ""
	if err != nil {
		return fmt.Errorf("delete %s: %w", p.name(), err)
	}
	if err := p.state.enter(Deleted); err != nil {
		return err
	}
	c.publish("/tasks/delete", &eventsapi.TaskDelete{
		ContainerID: c.id, ID: c.id, Pid: p.pid(), ExitStatus: uint32(p.exit.Code), ExitedAt: timestamppb.New(p.exit.At),
	})
	return nil
}

// teardown releases everything the container holds. Each part can be repeated:
// what fails by the deadline is left for the next Delete.
func (c *container) teardown(ctx context.Context, p *process, execs []*process, kill bool) error {
	if kill {
		if err := p.handle.Signal(unix.SIGKILL); err != nil && !isGone(err) {
			return err
		}
	}
	if err := c.cgroup.Kill(); err != nil && !errors.Is(err, sys.ErrNotFound) {
		return err
	}
	for _, x := range append(execs, p) {
		if _, err := x.awaitExit(ctx); err != nil {
			return err
		}
		x.release(ctx)
	}
	if err := c.cgroup.Delete(ctx); err != nil {
		return err
	}
	if err := c.rdt.release(); err != nil {
		return err
	}
	if err := c.unmount(); err != nil {
		return err
	}
	return c.cgroup.Close()
}

// release waits for the last output and closes what a process that has ended
// holds.
func (p *process) release(ctx context.Context) {
	if p.child != nil {
		p.child.Abandon()
	}
	p.dropPlan()
	if p.io != nil {
		_ = p.io.drained(ctx) // whatever is not out by then is lost
		p.io.close()
	}
	if p.handle != nil {
		_ = p.handle.Close()
	}
}

// deleteExec forgets an exec that has ended or was never started.
func (c *container) deleteExec(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	c.mu.Lock()
	if err := p.begin("delete", Created, Stopped); err != nil {
		c.mu.Unlock()
		return err
	}
	launched := p.handle != nil
	c.mu.Unlock()
	if launched { // if its start has just failed it may not be reaped yet
		if _, err := p.awaitExit(ctx); err != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			p.busy = ""
			return fmt.Errorf("delete %s: %w", p.name(), err)
		}
	}
	p.release(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.state == Created {
		c.settleStart(p, errNeverStarted)
	}
	p.busy = ""
	delete(c.execs, p.id)
	return p.state.enter(Deleted)
}

var errNeverStarted = errors.New("the process was deleted before it was started")
