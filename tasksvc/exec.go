package tasksvc

import (
	"context"
	"encoding/json"
	"fmt"

	eventsapi "github.com/containerd/containerd/api/events"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"

	"vminit/internal/sys"
)

// Exec takes note of a process to be started in a running container.
func (s *Service) Exec(ctx context.Context, r *taskv3.ExecProcessRequest) (*emptypb.Empty, error) {
	if _, err := s.addExec(namespaceOf(ctx), r, true); err != nil {
		return nil, err
	}
	return empty, nil
}

// addExec adds a process to a container, which is compiled ahead of its start if
// that is not to come at once.
func (s *Service) addExec(namespace string, r *taskv3.ExecProcessRequest, ahead bool) (*process, error) {
	if err := ValidateID("exec", r.ExecID); err != nil {
		return nil, err
	}
	spec := new(specs.Process)
	if r.Spec == nil {
		return nil, sys.Invalidf("exec %s has no process spec", r.ExecID)
	}
	if err := json.Unmarshal(r.Spec.Value, spec); err != nil {
		return nil, sys.Invalidf("exec %s: process spec: %w", r.ExecID, err)
	}
	if err := checkProcess(spec); err != nil {
		return nil, err
	}
	spec.Terminal = r.Terminal
	c, err := s.find(namespace, r.ID)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.mayExec(); err != nil {
		return nil, err
	}
	if _, ok := c.execs[r.ExecID]; ok {
		return nil, sys.Mark(sys.ErrExists, fmt.Errorf("exec %s of container %s exists already", r.ExecID, c.id))
	}
	p := newProcess(c, r.ExecID, spec, stdioURIs{r.Stdin, r.Stdout, r.Stderr, r.Terminal})
	c.execs[r.ExecID] = p
	if ahead {
		p.planAhead()
	}
	c.publish("/tasks/exec-added", &eventsapi.TaskExecAdded{ContainerID: c.id, ExecID: r.ExecID})
	return p, nil
}
