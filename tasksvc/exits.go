package tasksvc

import "vminit/nsexec"

// Exits. Three small things, because the kernel's pidfds and one lock per
// container leave little to do:
//
//   - processRegistry: which process of ours a live pidfd handle is.
//   - earlyExitDetector: an exit seen while the start is still under way waits
//     until the start has been published, or has failed.
//   - exitCoordinator: init's exit waits until the exits of all execs are out.

// processRegistry maps handles (never pids, which are reused) to processes.
type processRegistry map[*nsexec.Process]*process

// earlyExitDetector brings the end of a process and the end of its start into
// order.
type earlyExitDetector struct {
	starting bool // Start is under way
	ended    bool // the process is reaped
}

// exit takes note of the end and reports whether it can be dealt with now.
func (d *earlyExitDetector) exit() bool {
	d.ended = true
	return !d.starting
}

// settled takes note that the start is over and reports whether the process has
// ended in the meantime.
func (d *earlyExitDetector) settled() bool {
	d.starting = false
	return d.ended
}

// exitCoordinator orders the exits of one container.
type exitCoordinator struct {
	live     processRegistry
	execs    map[*process]bool // asked to start, exit not yet published
	initHeld *process          // init, while its exit waits for execs
}

func newExitCoordinator() exitCoordinator {
	return exitCoordinator{live: processRegistry{}, execs: map[*process]bool{}}
}

// starting takes note of an exec that init's exit has to wait for.
func (c *exitCoordinator) starting(p *process) { c.execs[p] = true }

// launched takes note of a process that exists from now on.
func (c *exitCoordinator) launched(p *process) { c.live[p.handle] = p }

// ended takes note of the exit of a process that was started, and returns those
// whose exit is to be published now, in order.
func (c *exitCoordinator) ended(p *process) []*process {
	delete(c.live, p.handle)
	if p.id == "" {
		c.initHeld = p
		return c.releaseInit()
	}
	delete(c.execs, p)
	return append([]*process{p}, c.releaseInit()...)
}

// neverStarted takes note of a process whose exit nobody will hear of. Others
// may have waited for it.
func (c *exitCoordinator) neverStarted(p *process) []*process {
	delete(c.live, p.handle)
	delete(c.execs, p)
	return c.releaseInit()
}

func (c *exitCoordinator) releaseInit() []*process {
	if c.initHeld == nil || len(c.execs) > 0 {
		return nil
	}
	p := c.initHeld
	c.initHeld = nil
	return []*process{p}
}
