package tasksvc

import (
	"context"
	"fmt"
	"strings"

	"vminit/nsexec"
)

// execPlan is a compiled exec, or why it cannot be.
type execPlan struct {
	plan      *plan
	container nsexec.Reg // input for the pidfd of the container's init
	err       error
}

// planAhead compiles an exec between the answer to Exec and the call of Start,
// which so gets to its clone3 sooner. What is wrong with it Start tells. One
// that is handed descriptors is not known well enough yet.
func (p *process) planAhead() {
	if strings.HasPrefix(p.uris.stdin, schemeFDs) {
		return
	}
	planned := make(chan execPlan, 1)
	p.planned = planned
	go func() {
		x := execPlan{err: fmt.Errorf("%s: the daemon failed to compile it; its log has the stack", p.name())}
		guard(p.container.svc.log, "plan of "+p.name(), func() { x = p.compile(context.Background(), nil) })
		planned <- x
	}()
}

func (p *process) compile(ctx context.Context, given *handover) (x execPlan) {
	c := p.container
	o := c.execOptions()
	o.files = len(given.files())
	o.traced = c.mayTrace(p.spec)
	if nsexec.NeedsHome(p.spec.Env) {
		if o.home, x.err = c.homeOf(ctx, c.init.handle, p.spec.User.UID); x.err != nil {
			return x
		}
	}
	if p.spec.ExecCPUAffinity == nil && c.spec.Process != nil { // config.json says it for all execs
		o.affinity = c.spec.Process.ExecCPUAffinity
	}
	x.plan, x.container, x.err = compileExec(given.environ(p.spec), c.spec.Linux, c.join, o)
	return x
}

// takePlan hands out the plan, once.
func (p *process) takePlan(ctx context.Context, given *handover) execPlan {
	p.container.mu.Lock()
	planned := p.planned
	p.planned = nil
	p.container.mu.Unlock()
	if planned == nil {
		return p.compile(ctx, given)
	}
	x := <-planned
	if x.err == nil && !x.plan.traced && p.container.mayTrace(p.spec) { // since then
		x.plan.program.Close()
		return p.compile(ctx, given)
	}
	return x
}

// dropPlan releases the plan of an exec that was never started.
func (p *process) dropPlan() {
	p.container.mu.Lock()
	planned := p.planned
	p.planned = nil
	p.container.mu.Unlock()
	if planned == nil {
		return
	}
	if x := <-planned; x.err == nil {
		x.plan.program.Close()
	}
}
