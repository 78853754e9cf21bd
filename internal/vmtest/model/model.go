// Package model is the reference model of the Task API: what a host may ask in
// which state and what the answer must be. Run drives a daemon, in this process
// or over the wire, with random sequences of calls, right ones and wrong ones,
// and compares each answer and, at the end, all events with the model's.
package model

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"
)

// Kind is what a process does when it is started.
type Kind struct {
	Name     string
	Args     []string
	Terminal bool
	Shared   bool // in the guest's pid namespace (inits only)
}

// The kinds there are: processes that stay, that end by themselves, and that
// cannot be loaded.
var (
	stays    = Kind{Name: "stays", Args: []string{"/bin/sleep", "100000"}}
	terminal = Kind{Name: "terminal", Args: []string{"/bin/sleep", "100000"}, Terminal: true}
	shared   = Kind{Name: "shared", Args: []string{"/bin/sleep", "100000"}, Shared: true}
	ends     = Kind{Name: "ends", Args: []string{"/bin/sh", "-c", "exit 7"}}
	missing  = Kind{Name: "missing", Args: []string{"nosuchcommand"}}

	inits = []Kind{stays, stays, terminal, shared, ends, missing}
	execs = []Kind{stays, ends, terminal, missing, ends}
)

// Kinds are those a container can be made of.
func Kinds() []Kind { return []Kind{stays, terminal, shared, ends, missing} }

// Config says what is driven.
type Config struct {
	Task taskv3.TTRPCTaskService
	// Code is the gRPC code of an error of Task.
	Code func(error) codes.Code
	// Bundle prepares a container of that kind: everything but its id.
	Bundle func(Kind) (*taskv3.CreateTaskRequest, error)
	// Spec is an exec of that kind.
	Spec func(Kind) *specs.Process
	// Ledger is fed with all the daemon's events by the caller.
	Ledger *Ledger
	// Limits says that limits can be set.
	Limits bool
	// Ops counts the calls made.
	Ops *atomic.Int64
}

// phase is where a process is, as far as the host can know.
type phase int

const (
	created phase = iota
	running
	ending // it has ended or is about to: its exit may be out or not
	stopped
)

// process is an init or an exec.
type process struct {
	kind   Kind
	phase  phase
	ran    bool
	codes  []uint32 // those its exit may have, once ending or stopped
	killed bool     // by a signal, so that it ends even if frozen
	doomed bool     // has a deadly signal pending until it is started
	failed bool     // its start failed: what it has of stdio is anybody's guess
}

// container is a process with execs.
type container struct {
	process
	id     string
	paused bool
	execs  map[string]*process
}

// state is one run of the model.
type state struct {
	Config
	t          *rapid.T
	prefix     string
	containers map[string]*container
	ends       int                   // deletes so far
	exits      map[string][][]uint32 // what the ledger must have
}

// answerTimeout bounds every call that must be answered.
const answerTimeout = 90 * time.Second

var runs atomic.Int64

// Run makes one random sequence of calls. Whatever happens, nothing it made is
// left when it returns.
func (cfg Config) Run(t *rapid.T) {
	s := &state{Config: cfg, t: t, prefix: fmt.Sprintf("m%d-", runs.Add(1)), containers: map[string]*container{}, exits: map[string][][]uint32{}}
	before, _ := cfg.Ledger.Ends()
	defer s.clear()
	t.Repeat(s.actions())
	s.finish()
	s.audit(before)
}

// clear takes everything away that a failed run has left.
func (s *state) clear() {
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	for id := range s.containers {
		_, _ = s.Task.Kill(ctx, &taskv3.KillRequest{ID: id, Signal: 9, All: true})
		_, _ = s.Task.Wait(ctx, &taskv3.WaitRequest{ID: id})
		_, _ = s.Task.Delete(ctx, &taskv3.DeleteRequest{ID: id})
	}
}

// finish takes all containers through the rest of their lives.
func (s *state) finish() {
	for _, id := range s.ids() {
		c := s.containers[id]
		if c.phase != stopped {
			s.kill(c, "", 9, true)
			s.wait(c, "")
		}
		s.delete(c, "")
	}
}

// audit compares the events with what they must be.
func (s *state) audit(before int) {
	timeout := time.After(answerTimeout)
	for {
		n, more := s.Ledger.Ends()
		if n >= before+s.ends {
			break
		}
		select {
		case <-more:
		case <-timeout:
			s.t.Fatalf("events: %d deletes of %d have come; alive: %v", n-before, s.ends, s.Ledger.Alive())
		}
	}
	if wrong := s.Ledger.Wrong(); len(wrong) > 0 {
		s.t.Fatalf("events: %q", wrong)
	}
	got := s.Ledger.Exits()
	for name, want := range s.exits {
		if len(got[name]) != len(want) {
			s.t.Fatalf("events: exits of %s are %v, must be %v", name, got[name], want)
		}
		for i, code := range got[name] {
			if !slices.Contains(want[i], code) {
				s.t.Fatalf("events: exits of %s are %v, must be %v", name, got[name], want)
			}
		}
	}
}

// ids are the containers' in a fixed order, so that a seed gives one sequence.
func (s *state) ids() []string {
	var ids []string
	for id := range s.containers {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// call counts a call and gives it a deadline.
func (s *state) call() context.Context {
	s.Ops.Add(1)
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	context.AfterFunc(ctx, cancel)
	s.t.Cleanup(cancel)
	return ctx
}

// expect fails unless the answer is one of those the model allows.
func (s *state) expect(err error, what string, allowed ...codes.Code) codes.Code {
	code := s.Code(err)
	if !slices.Contains(allowed, code) {
		s.t.Fatalf("%s: %v (%v), must be one of %v", what, code, err, allowed)
	}
	return code
}

// process finds an exec, or the init for "".
func (c *container) get(exec string) *process {
	if exec == "" {
		return &c.process
	}
	return c.execs[exec]
}

// end: p ends now or soon with one of the codes.
func (p *process) end(codes ...uint32) {
	if p.phase == stopped {
		return
	}
	p.phase = ending
	p.codes = append(p.codes, codes...)
}

// endAll: everything in the container ends now or soon.
func (c *container) endAll(codes ...uint32) {
	c.end(codes...)
	for _, x := range c.execs {
		if x.phase == running || x.phase == ending {
			x.killed = true
			x.end(137)
		}
	}
}

// record takes note that a process whose exit is published was p.
func (s *state) record(c *container, exec string, p *process) {
	if !p.ran {
		return
	}
	name := c.id
	if exec != "" {
		name += "/" + exec
	}
	s.exits[name] = append(s.exits[name], p.codes)
}
