package model

import (
	"fmt"
	"slices"
	"strings"
	"sync"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
)

// Ledger is told every event a daemon publishes and says what is wrong with
// them: an event twice, one missing, one too early or too late, one of a
// process that does not exist. Ids may be used again after a delete. Safe for
// concurrent use.
type Ledger struct {
	mu    sync.Mutex // guards all below
	lives map[string]*life
	exits map[string][]uint32 // "container" or "container/exec" -> codes in the order of exits
	ends  int                 // deletes
	wrong []string
	more  chan struct{} // closed and replaced when an event has come
}

// life is one container between create and delete.
type life struct {
	pid                    uint32
	started, paused, ended bool
	code                   uint32
	execs                  map[string]*execLife
}

type execLife struct {
	pid            uint32
	started, ended bool
}

// NewLedger returns an empty Ledger.
func NewLedger() *Ledger {
	return &Ledger{lives: map[string]*life{}, exits: map[string][]uint32{}, more: make(chan struct{})}
}

// Add takes the next event.
func (l *Ledger) Add(env *types.Envelope) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.add(env); err != nil && len(l.wrong) < 100 {
		l.wrong = append(l.wrong, err.Error())
	}
	close(l.more)
	l.more = make(chan struct{})
}

// Wrong returns what was wrong so far.
func (l *Ledger) Wrong() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.wrong)
}

// Ends returns how many containers were deleted so far, and a channel that is
// closed when another event comes.
func (l *Ledger) Ends() (int, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ends, l.more
}

// Exits returns the exit codes of all processes that have gone by this name:
// "container" for inits, "container/exec" for execs.
func (l *Ledger) Exits() map[string][]uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string][]uint32{}
	for name, codes := range l.exits {
		all[name] = slices.Clone(codes)
	}
	return all
}

// Alive returns the containers that have not been deleted.
func (l *Ledger) Alive() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []string
	for id := range l.lives {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (l *Ledger) add(env *types.Envelope) error {
	topic := strings.TrimPrefix(env.Topic, "/tasks/")
	decode := func(m proto.Message) error {
		if err := proto.Unmarshal(env.Event.Value, m); err != nil {
			return fmt.Errorf("%s: %w", topic, err)
		}
		return nil
	}
	var id string
	var check func(c *life) string
	var err error
	switch topic {
	case "create":
		e := &eventsapi.TaskCreate{}
		if err := decode(e); err != nil {
			return err
		}
		if l.lives[e.ContainerID] != nil {
			return fmt.Errorf("create %s: it is alive", e.ContainerID)
		}
		l.lives[e.ContainerID] = &life{pid: e.Pid, execs: map[string]*execLife{}}
		return nil
	case "start":
		e := &eventsapi.TaskStart{}
		err, id = decode(e), e.ContainerID
		check = func(c *life) string { return c.start(e) }
	case "exec-added":
		e := &eventsapi.TaskExecAdded{}
		err, id = decode(e), e.ContainerID
		check = func(c *life) string { return c.execAdded(e) }
	case "exec-started":
		e := &eventsapi.TaskExecStarted{}
		err, id = decode(e), e.ContainerID
		check = func(c *life) string { return c.execStarted(e) }
	case "exit":
		e := &eventsapi.TaskExit{}
		err, id = decode(e), e.ContainerID
		check = func(c *life) string { return l.exit(c, e) }
	case "paused":
		e := &eventsapi.TaskPaused{}
		err, id = decode(e), e.ContainerID
		check = func(c *life) string { return c.pause(true) }
	case "resumed":
		e := &eventsapi.TaskResumed{}
		err, id = decode(e), e.ContainerID
		check = func(c *life) string { return c.pause(false) }
	case "oom":
		e := &eventsapi.TaskOOM{}
		err, id = decode(e), e.ContainerID
		check = func(c *life) string { return unless(!c.ended, "after its exit") }
	case "delete":
		e := &eventsapi.TaskDelete{}
		err, id = decode(e), e.ContainerID
		check = func(c *life) string { return l.delete(c, e) }
	default:
		return fmt.Errorf("unknown topic %s", env.Topic)
	}
	if err != nil {
		return err
	}
	c := l.lives[id]
	if c == nil {
		return fmt.Errorf("%s of %s, which is not alive", topic, id)
	}
	if complaint := check(c); complaint != "" {
		return fmt.Errorf("%s of %s: %s", topic, id, complaint)
	}
	return nil
}

func unless(good bool, complaint string) string {
	if good {
		return ""
	}
	return complaint
}

func (c *life) start(e *eventsapi.TaskStart) string {
	if c.started || c.ended {
		return "it has started before"
	}
	c.started = true
	return unless(e.Pid == c.pid, fmt.Sprintf("pid %d, created as %d", e.Pid, c.pid))
}

func (c *life) execAdded(e *eventsapi.TaskExecAdded) string {
	if !c.started || c.ended {
		return fmt.Sprintf("exec %s: its container does not run", e.ExecID)
	}
	if x := c.execs[e.ExecID]; x != nil && x.started && !x.ended {
		return fmt.Sprintf("exec %s: it is alive", e.ExecID)
	}
	c.execs[e.ExecID] = &execLife{}
	return ""
}

func (c *life) execStarted(e *eventsapi.TaskExecStarted) string {
	x := c.execs[e.ExecID]
	if x == nil || x.started || c.ended || e.Pid == 0 {
		return fmt.Sprintf("exec %s: %+v, container has ended: %t", e.ExecID, x, c.ended)
	}
	x.started, x.pid = true, e.Pid
	return ""
}

func (c *life) pause(paused bool) string {
	if !c.started || c.ended || c.paused == paused {
		return fmt.Sprintf("started %t, paused %t, ended %t", c.started, c.paused, c.ended)
	}
	c.paused = paused
	return ""
}

func (l *Ledger) exit(c *life, e *eventsapi.TaskExit) string {
	if e.ExitedAt == nil {
		return "without a time"
	}
	if e.ID == e.ContainerID {
		if !c.started || c.ended || e.Pid != c.pid {
			return fmt.Sprintf("started %t, ended %t, pid %d, exit of %d", c.started, c.ended, c.pid, e.Pid)
		}
		for id, x := range c.execs {
			if x.started && !x.ended {
				return fmt.Sprintf("exec %s has not ended", id)
			}
		}
		c.ended, c.code = true, e.ExitStatus
		l.exits[e.ID] = append(l.exits[e.ID], e.ExitStatus)
		return ""
	}
	x := c.execs[e.ID]
	if x == nil || !x.started || x.ended || x.pid != e.Pid {
		return fmt.Sprintf("exec %s: %+v, exit of pid %d", e.ID, x, e.Pid)
	}
	x.ended = true
	name := e.ContainerID + "/" + e.ID
	l.exits[name] = append(l.exits[name], e.ExitStatus)
	return ""
}

func (l *Ledger) delete(c *life, e *eventsapi.TaskDelete) string {
	delete(l.lives, e.ContainerID)
	l.ends++
	switch {
	case c.started && !c.ended:
		return "it has not ended"
	case c.ended && c.code != e.ExitStatus:
		return fmt.Sprintf("status %d, its exit had %d", e.ExitStatus, c.code)
	case e.Pid != c.pid:
		return fmt.Sprintf("pid %d, created as %d", e.Pid, c.pid)
	}
	return ""
}
