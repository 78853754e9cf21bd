package tasksvc

import (
	"bytes"
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
	if err := validateID("exec", r.ExecID); err != nil {
		return nil, err
	}
	if r.Spec == nil {
		return nil, sys.Invalidf("exec %s has no process spec", r.ExecID)
	}
	c, missing := s.find(namespace, r.ID)
	spec, err := c.readExec(r.Spec.Value)
	if err != nil {
		return nil, fmt.Errorf("exec %s: %w", r.ExecID, err)
	}
	if missing != nil {
		return nil, missing
	}
	spec.Terminal = r.Terminal
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

// execSpec is the process of an exec as it came and as it was read.
type execSpec struct {
	json []byte
	spec specs.Process
}

// maxKeptExec bounds the length of an execSpec that is kept.
const maxKeptExec = 64 << 10

// readExec reads the process of an exec. Health checks send the same one again
// and again, and reading it takes a tenth of their time: the last is kept. What
// the result points to is not to be changed. The container may be nil.
func (c *container) readExec(data []byte) (*specs.Process, error) {
	if c != nil {
		c.mu.Lock()
		last := c.lastExec
		c.mu.Unlock()
		if last != nil && bytes.Equal(last.json, data) {
			again := last.spec
			return &again, nil
		}
	}
	spec := new(specs.Process)
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, sys.Invalidf("process spec: %w", err)
	}
	if err := checkProcess(spec); err != nil {
		return nil, err
	}
	if c != nil && len(data) <= maxKeptExec {
		c.mu.Lock()
		c.lastExec = &execSpec{data, *spec}
		c.mu.Unlock()
	}
	return spec, nil
}
