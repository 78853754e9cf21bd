package model

import (
	"encoding/json"
	"fmt"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"
)

func (s *state) pause(c *container, _ string) {
	_, err := s.Task.Pause(s.call(), &taskv3.PauseRequest{ID: c.id})
	what := "pause " + c.id
	switch {
	case !s.known(c):
		s.expect(err, what, notFound)
	case c.phase == ending && !c.paused:
		if s.expect(err, what, ok, wrongTime) == ok {
			c.paused = true
		}
	case c.phase == running && !c.paused:
		s.expect(err, what, ok)
		c.paused = true
	default:
		s.expect(err, what, wrongTime)
	}
}

func (s *state) resume(c *container, _ string) {
	_, err := s.Task.Resume(s.call(), &taskv3.ResumeRequest{ID: c.id})
	what := "resume " + c.id
	switch {
	case !s.known(c):
		s.expect(err, what, notFound)
		return
	case !c.paused:
		s.expect(err, what, wrongTime)
		return
	case c.phase == ending:
		if s.expect(err, what, ok, wrongTime) != ok {
			return
		}
	default:
		s.expect(err, what, ok)
	}
	c.paused = false
}

// pids must list the processes that are alive, and only those.
func (s *state) pids(c *container, _ string) {
	r, err := s.Task.Pids(s.call(), &taskv3.PidsRequest{ID: c.id})
	what := "pids of " + c.id
	if !s.known(c) {
		s.expect(err, what, notFound)
		return
	}
	s.expect(err, what, ok)
	least, most := 0, 0
	count := func(p *process, init bool) {
		switch {
		case p.phase == ending:
			most++
		case p.phase == running, init && p.phase == created:
			least, most = least+1, most+1
		}
	}
	count(&c.process, true)
	for _, x := range c.execs {
		count(x, false)
	}
	if c.phase == ending {
		least = 0
	}
	if n := len(r.Processes); n < least || n > most {
		s.t.Fatalf("%s: %d processes, must be %d to %d: %v", what, n, least, most, r.Processes)
	}
}

func (s *state) closeIO(c *container, exec string) {
	_, err := s.Task.CloseIO(s.call(), &taskv3.CloseIORequest{ID: c.id, ExecID: exec, Stdin: true})
	want := ok
	if !s.known(c) || c.get(exec) == nil {
		want = notFound
	}
	s.expect(err, fmt.Sprintf("closeio %s %s", c.id, exec), want)
}

func (s *state) resize(c *container, exec string) {
	_, err := s.Task.ResizePty(s.call(), &taskv3.ResizePtyRequest{ID: c.id, ExecID: exec, Width: 100, Height: 30})
	what := fmt.Sprintf("resize %s %s", c.id, exec)
	p := c.get(exec)
	switch {
	case !s.known(c) || p == nil:
		s.expect(err, what, notFound)
	case p.failed:
		s.expect(err, what, ok, wrongTime)
	case exec != "" && p.phase == created || !p.kind.Terminal:
		s.expect(err, what, wrongTime)
	default:
		s.expect(err, what, ok)
	}
}

func (s *state) update(c *container, _ string) {
	bodies := []string{"{}", "{", `{"pids":{"limit":"x"}}`, ""}
	if s.Limits {
		bodies = append(bodies, `{"pids":{"limit":77}}`, `{"memory":{"limit":104857600}}`)
	}
	body := rapid.SampledFrom(bodies).Draw(s.t, "resources")
	r := &taskv3.UpdateTaskRequest{ID: c.id, Resources: &anypb.Any{Value: []byte(body)}}
	if body == "" {
		r.Resources = nil
	}
	_, err := s.Task.Update(s.call(), r)
	want := ok
	switch {
	case !s.known(c):
		want = notFound
	case body == "" || !json.Valid([]byte(body)) || body == bodies[2]:
		want = invalid
	}
	s.expect(err, "update "+c.id+" "+body, want)
}

// others are the calls that change nothing.
func (s *state) others(c *container) {
	want := ok
	if !s.known(c) {
		want = notFound
	}
	_, err := s.Task.Stats(s.call(), &taskv3.StatsRequest{ID: c.id})
	s.expect(err, "stats of "+c.id, want)
	_, err = s.Task.Checkpoint(s.call(), &taskv3.CheckpointTaskRequest{ID: c.id})
	s.expect(err, "checkpoint "+c.id, codes.Unimplemented)
	connected, err := s.Task.Connect(s.call(), &taskv3.ConnectRequest{ID: c.id})
	s.expect(err, "connect "+c.id, ok)
	if (connected.TaskPid != 0) != s.known(c) {
		s.t.Fatalf("connect %s: pid %d", c.id, connected.TaskPid)
	}
	if len(s.containers) > 0 {
		_, err = s.Task.Shutdown(s.call(), &taskv3.ShutdownRequest{ID: c.id})
		s.expect(err, "shutdown with containers", ok)
	}
}

// bad are requests that are wrong whatever there is.
func (s *state) bad() {
	id := rapid.SampledFrom([]string{"", ".", "..", "a/b", "../x", "-x", "a\x00b", "ä"}).Draw(s.t, "id")
	_, err := s.Task.Create(s.call(), &taskv3.CreateTaskRequest{ID: id, Bundle: "/nosuch"})
	s.expect(err, fmt.Sprintf("create %q", id), invalid)
	_, err = s.Task.Create(s.call(), &taskv3.CreateTaskRequest{ID: s.prefix + "bad", Bundle: "/nosuch"})
	s.expect(err, "create without a bundle", invalid)
	_, err = s.Task.State(s.call(), &taskv3.StateRequest{ID: s.prefix + "bad"})
	s.expect(err, "state of what was not created", notFound)
	c, _ := s.pick()
	_, err = s.Task.Exec(s.call(), &taskv3.ExecProcessRequest{ID: c.id, ExecID: id, Spec: &anypb.Any{Value: []byte(`{"args":["x"],"cwd":"/"}`)}})
	s.expect(err, fmt.Sprintf("exec %q", id), invalid)
	for _, spec := range []string{"", "{", `{"cwd":"/"}`, `{"args":["x"]}`} {
		_, err = s.Task.Exec(s.call(), &taskv3.ExecProcessRequest{ID: c.id, ExecID: "bad", Spec: &anypb.Any{Value: []byte(spec)}})
		s.expect(err, fmt.Sprintf("exec with spec %q", spec), invalid)
	}
}

// look is done between all others: every container is where the model has it.
func (s *state) look() {
	for _, id := range s.ids() {
		s.state(s.containers[id], "")
	}
}
