package model

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"
)

// Short names for the answers.
const (
	ok        = codes.OK
	notFound  = codes.NotFound
	exists    = codes.AlreadyExists
	wrongTime = codes.FailedPrecondition
	invalid   = codes.InvalidArgument
	late      = codes.DeadlineExceeded
)

// actions are the calls a host can make, each on something that exists or not.
func (s *state) actions() map[string]func(*rapid.T) {
	on := func(f func(c *container, exec string)) func(*rapid.T) {
		return func(t *rapid.T) {
			s.t = t
			f(s.pick())
		}
	}
	all := map[string]func(*rapid.T){
		"create": func(t *rapid.T) { s.t = t; s.create() },
		"start":  on(s.start), "state": on(s.state), "delete": on(s.delete), "wait": on(s.wait), "pids": on(s.pids),
		"closeio": on(s.closeIO), "resize": on(s.resize), "update": on(s.update), "pause": on(s.pause), "resume": on(s.resume),
		"exec": on(func(c *container, _ string) { s.exec(c) }),
		"kill": on(func(c *container, exec string) {
			s.kill(c, exec, s.signal(), rapid.IntRange(0, 5).Draw(s.t, "all") == 0)
		}),
		"twice":  on(s.twice),
		"others": on(func(c *container, _ string) { s.others(c) }),
		"bad":    func(t *rapid.T) { s.t = t; s.bad() },
	}
	for _, often := range []string{"exec", "start"} {
		all["another "+often] = all[often]
	}
	all[""] = func(t *rapid.T) { s.t = t; s.look() }
	return all
}

// pick chooses a container, which may be nil, and a process of it, which may
// not be there.
func (s *state) pick() (*container, string) {
	id := s.prefix + rapid.SampledFrom([]string{"a", "b", "c"}).Draw(s.t, "container")
	exec := rapid.SampledFrom([]string{"", "", "x", "y", "z"}).Draw(s.t, "process")
	if c := s.containers[id]; c != nil {
		return c, exec
	}
	return &container{id: id, execs: nil}, exec
}

// known reports whether the container exists; if not, its process does not.
func (s *state) known(c *container) bool { return s.containers[c.id] == c }

func (s *state) signal() uint32 {
	return rapid.SampledFrom([]uint32{9, 9, 15, 15, 0, 65}).Draw(s.t, "signal")
}

func (s *state) create() {
	c, _ := s.pick()
	kind := rapid.SampledFrom(inits).Draw(s.t, "kind")
	r, err := s.Bundle(kind)
	if err != nil {
		s.t.Fatalf("bundle: %v", err)
	}
	r.ID, r.Terminal = c.id, kind.Terminal
	_, err = s.Task.Create(s.call(), r)
	what := fmt.Sprintf("create %s (%s)", c.id, kind.Name)
	if s.known(c) {
		s.expect(err, what+" again", exists)
		return
	}
	s.expect(err, what, ok)
	s.containers[c.id] = &container{process: process{kind: kind}, id: c.id, execs: map[string]*process{}}
}

// start starts an init or an exec.
func (s *state) start(c *container, exec string) {
	_, err := s.Task.Start(s.call(), &taskv3.StartRequest{ID: c.id, ExecID: exec})
	s.started(c, exec, err)
}

func (s *state) started(c *container, exec string, err error) {
	what := fmt.Sprintf("start %s %s", c.id, exec)
	p := c.get(exec)
	if !s.known(c) || p == nil {
		s.expect(err, what, notFound)
		return
	}
	what += fmt.Sprintf(" (%s, %d)", p.kind.Name, p.phase)
	switch {
	case exec != "" && (c.phase != running && c.phase != ending || c.paused && c.phase != ending):
		s.expect(err, what, wrongTime)
		return
	case exec == "" && !p.ran && (p.phase == ending || p.phase == created && p.doomed):
		// Killed before its start: whether it got as far as its program is a
		// matter of microseconds.
		p.ran = s.expect(err, what, ok, wrongTime) == ok
		p.end(143)
		return
	case p.phase != created:
		s.expect(err, what, wrongTime)
		return
	case p.kind.Name == missing.Name:
		allowed := []codes.Code{codes.Unknown}
		if exec != "" && c.phase == ending {
			allowed = append(allowed, wrongTime, ok)
		}
		switch s.expect(err, what, allowed...) {
		case wrongTime:
			s.lookAgain(c, exec, p)
		case ok: // killed before it could find out
			p.ran, p.killed = true, true
			p.end(137)
		default:
			p.phase, p.failed, p.codes = stopped, true, nil
		}
		return
	}
	allowed := []codes.Code{ok}
	if exec != "" && c.phase == ending {
		allowed = append(allowed, wrongTime)
	}
	if s.expect(err, what, allowed...) != ok {
		s.lookAgain(c, exec, p)
		return
	}
	p.ran, p.phase = true, running
	if p.kind.Name == ends.Name {
		if exec == "" {
			c.endAll(7)
		} else {
			p.end(7)
		}
	}
	if exec != "" && c.phase == ending {
		p.killed = true
		p.end(137)
	}
}

// lookAgain: a start in a dying container was refused, either before or after
// it came to a process.
func (s *state) lookAgain(c *container, exec string, p *process) {
	st, err := s.Task.State(s.call(), &taskv3.StateRequest{ID: c.id, ExecID: exec})
	s.expect(err, "state after a failed start", ok)
	if st.Status == tasktypes.Status_STOPPED {
		p.phase, p.failed = stopped, true
	}
}

func (s *state) exec(c *container) {
	exec := rapid.SampledFrom([]string{"x", "y", "z"}).Draw(s.t, "exec")
	kind := rapid.SampledFrom(execs).Draw(s.t, "kind")
	spec, err := json.Marshal(s.Spec(kind))
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = s.Task.Exec(s.call(), &taskv3.ExecProcessRequest{ID: c.id, ExecID: exec, Terminal: kind.Terminal, Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: spec}})
	what := fmt.Sprintf("exec %s in %s", exec, c.id)
	dup := ok
	if c.execs[exec] != nil {
		dup = exists
	}
	switch {
	case !s.known(c):
		s.expect(err, what, notFound)
		return
	case c.phase == ending:
		if s.expect(err, what, dup, wrongTime) != ok {
			return
		}
	case c.phase != running || c.paused:
		s.expect(err, what, wrongTime)
		return
	default:
		if s.expect(err, what, dup) != ok {
			return
		}
	}
	c.execs[exec] = &process{kind: kind}
}

// state compares what the daemon says of a process.
func (s *state) state(c *container, exec string) {
	st, err := s.Task.State(s.call(), &taskv3.StateRequest{ID: c.id, ExecID: exec})
	p := c.get(exec)
	what := fmt.Sprintf("state of %s %s", c.id, exec)
	if !s.known(c) || p == nil {
		s.expect(err, what, notFound)
		return
	}
	s.expect(err, what, ok)
	alive := tasktypes.Status_RUNNING
	if !p.ran {
		alive = tasktypes.Status_CREATED
	} else if exec == "" && c.paused {
		alive = tasktypes.Status_PAUSED
	}
	allowed := map[phase][]tasktypes.Status{
		created: {tasktypes.Status_CREATED}, running: {alive}, ending: {alive, tasktypes.Status_STOPPED}, stopped: {tasktypes.Status_STOPPED},
	}[p.phase]
	if !slices.Contains(allowed, st.Status) {
		s.t.Fatalf("%s is %v, must be %v", what, st.Status, allowed)
	}
	if st.Status == tasktypes.Status_STOPPED {
		s.exited(p, what, st.ExitStatus)
	}
	if st.ID != c.id || st.ExecID != exec || st.Terminal != p.kind.Terminal || (st.Pid == 0) != (exec != "" && p.phase == created) && !p.failed {
		s.t.Fatalf("%s: %v", what, st)
	}
}

// exited checks an exit code.
func (s *state) exited(p *process, what string, code uint32) {
	if !p.failed && !slices.Contains(p.codes, code) {
		s.t.Fatalf("%s: exit code %d, must be one of %v", what, code, p.codes)
	}
}

func (s *state) wait(c *container, exec string) {
	p := c.get(exec)
	what := fmt.Sprintf("wait for %s %s", c.id, exec)
	ctx := s.call()
	frozen := c.paused && p != nil && p.phase == ending && !p.killed
	held := s.heldBack(c, exec)
	brief := s.known(c) && p != nil && (p.phase == created || p.phase == running || frozen || held)
	if brief {
		short, cancel := context.WithTimeout(ctx, 3*time.Millisecond)
		defer cancel()
		ctx = short
	}
	w, err := s.Task.Wait(ctx, &taskv3.WaitRequest{ID: c.id, ExecID: exec})
	switch {
	case !s.known(c) || p == nil:
		s.expect(err, what, notFound)
		return
	case frozen || held:
		if s.expect(err, what, ok, late) == late {
			return
		}
	case brief:
		s.expect(err, what, late)
		return
	default:
		s.expect(err, what, ok)
	}
	s.exited(p, what, w.ExitStatus)
	s.settle(c, exec, p, w.ExitStatus)
}

// heldBack: an init ends only when its execs do, which none can while it is
// frozen. Those that were killed can.
func (s *state) heldBack(c *container, exec string) bool {
	if exec != "" || !c.paused {
		return false
	}
	for _, x := range c.execs {
		if (x.phase == running || x.phase == ending) && !x.killed {
			return true
		}
	}
	return false
}

// settle: the exit of p is out, and with an init's those of all its execs.
func (s *state) settle(c *container, exec string, p *process, code uint32) {
	if p.phase == stopped {
		return
	}
	p.phase = stopped
	s.record(c, exec, p)
	if p.ran {
		p.codes = []uint32{code}
	}
	if exec != "" {
		return
	}
	c.paused = false
	for id, x := range c.execs {
		if x.phase == ending || x.phase == running {
			x.phase = stopped
			s.record(c, id, x)
		}
	}
}

func (s *state) kill(c *container, exec string, signal uint32, all bool) {
	_, err := s.Task.Kill(s.call(), &taskv3.KillRequest{ID: c.id, ExecID: exec, Signal: signal, All: all})
	p := c.get(exec)
	what := fmt.Sprintf("kill %s %s with %d (all: %t)", c.id, exec, signal, all)
	switch {
	case signal == 0 || signal > 64:
		s.expect(err, what, invalid)
		return
	case !s.known(c) || p == nil:
		s.expect(err, what, notFound)
		return
	case all && exec == "":
		s.expect(err, what, ok)
		for _, x := range c.execs {
			if x.phase == running || x.phase == ending {
				s.deliver(c, x, signal, false)
			}
		}
	case exec != "" && p.phase == created:
		s.expect(err, what, wrongTime)
		return
	case p.phase == stopped:
		s.expect(err, what, notFound)
		return
	case p.phase == ending:
		s.expect(err, what, ok, notFound)
	default:
		s.expect(err, what, ok)
	}
	s.deliver(c, p, signal, exec == "")
}

// deliver is what a signal does to a process.
func (s *state) deliver(c *container, p *process, signal uint32, init bool) {
	end := p.end
	if init {
		end = c.endAll
	}
	switch {
	case p.phase == stopped:
	case signal == 9, init && !p.kind.Shared && p.phase == created: // 15 would not get through
		p.killed = true
		end(137)
	case init && !p.kind.Shared: // the kernel drops what PID 1 does not handle
	case p.phase == created: // its signals are blocked until it loads its program
		p.doomed = true
	default: // also of what is frozen: a deadly signal gets through
		p.killed = true
		end(143)
	}
}

func (s *state) delete(c *container, exec string) {
	d, err := s.Task.Delete(s.call(), &taskv3.DeleteRequest{ID: c.id, ExecID: exec})
	s.deleted(c, exec, d, err, ok)
}

// deleted takes the answer to a delete, of which success must look as given.
func (s *state) deleted(c *container, exec string, d *taskv3.DeleteResponse, err error, success codes.Code) {
	p := c.get(exec)
	what := fmt.Sprintf("delete %s %s", c.id, exec)
	switch {
	case !s.known(c) || p == nil:
		s.expect(err, what, notFound)
		return
	case p.phase == running:
		s.expect(err, what, wrongTime)
		return
	case p.phase == ending:
		if s.expect(err, what, success, wrongTime) != ok {
			return
		}
	default:
		s.expect(err, what, success)
	}
	switch p.phase {
	case created:
		if exec == "" && d.ExitStatus != 137 && !p.doomed {
			s.t.Fatalf("%s before its start: exit code %d", what, d.ExitStatus)
		}
	default:
		s.exited(p, what, d.ExitStatus)
		s.settle(c, exec, p, d.ExitStatus)
	}
	if exec == "" {
		delete(s.containers, c.id)
		s.ends++
	} else {
		delete(c.execs, exec)
	}
}

// twice makes the same call from two sides at once: one of them is too late.
func (s *state) twice(c *container, exec string) {
	type answer struct {
		d   *taskv3.DeleteResponse
		err error
	}
	starting := rapid.Bool().Draw(s.t, "start")
	ctx := s.call()
	s.Ops.Add(1)
	answers := make([]answer, 2)
	var both sync.WaitGroup
	for i := range answers {
		both.Go(func() {
			if starting {
				_, answers[i].err = s.Task.Start(ctx, &taskv3.StartRequest{ID: c.id, ExecID: exec})
			} else {
				answers[i].d, answers[i].err = s.Task.Delete(ctx, &taskv3.DeleteRequest{ID: c.id, ExecID: exec})
			}
		})
	}
	both.Wait()
	a, b := answers[0], answers[1]
	if code := s.Code(a.err); code == wrongTime || code == notFound { // the one that was first, if any, is a
		a, b = b, a
	}
	if p := c.get(exec); starting {
		s.started(c, exec, a.err)
		if !s.known(c) || p == nil {
			s.expect(b.err, "second start", notFound)
		} else {
			s.expect(b.err, "second start", wrongTime)
		}
		return
	}
	s.deleted(c, exec, a.d, a.err, ok)
	s.expect(b.err, "second delete", wrongTime, notFound)
}
