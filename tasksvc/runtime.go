package tasksvc

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	runtimeapi "vminit/api/services/runtime/v1"
	"vminit/internal/sys"
)

// Runtime is our own service for OCI command lines, see its .proto.
type Runtime struct {
	tasks *Service
	local bool
}

// NewRuntime returns the service. local says that clients are on this machine
// and may hand over descriptors.
func NewRuntime(tasks *Service, local bool) *Runtime { return &Runtime{tasks, local} }

// Register adds the service to a server.
func (r *Runtime) Register(srv *ttrpc.Server) { runtimeapi.RegisterTTRPCRuntimeService(srv, r) }

// List tells of the containers of a namespace.
func (r *Runtime) List(ctx context.Context, q *runtimeapi.ListRequest) (*runtimeapi.ListResponse, error) {
	s, namespace := r.tasks, namespaceOf(ctx)
	var found []*container
	s.mu.Lock()
	total := len(s.containers)
	for key, c := range s.containers {
		if key.namespace == namespace && (q.Id == "" || q.Id == key.id) {
			found = append(found, c)
		}
	}
	s.mu.Unlock()
	if q.Id != "" && len(found) == 0 {
		return nil, sys.Mark(sys.ErrNotFound, fmt.Errorf("container %s not found", q.Id))
	}
	slices.SortFunc(found, func(a, b *container) int { return strings.Compare(a.id, b.id) })
	resp := &runtimeapi.ListResponse{Local: r.local, Total: uint32(total)}
	for _, c := range found {
		d, err := c.describe(q.Process)
		if err != nil {
			return nil, err
		}
		resp.Containers = append(resp.Containers, d)
	}
	return resp, nil
}

// RunExec runs a process in a container to its end.
func (r *Runtime) RunExec(ctx context.Context, q *taskv3.ExecProcessRequest) (*taskv3.DeleteResponse, error) {
	p, err := r.tasks.addExec(namespaceOf(ctx), q, false)
	if err != nil {
		return nil, err
	}
	c := p.container
	if _, err := c.startExec(ctx, p); err != nil {
		_ = c.deleteExec(context.WithoutCancel(ctx), p)
		return nil, err
	}
	exit, err := p.awaitExit(ctx)
	if err != nil {
		return nil, err
	}
	p.io.linger()            // nobody says when the output has been read
	_ = c.deleteExec(ctx, p) // somebody else may have
	return &taskv3.DeleteResponse{Pid: p.pid(), ExitStatus: uint32(exit.Code), ExitedAt: timestamppb.New(exit.At)}, nil
}

// describe tells of one container.
func (c *container) describe(process bool) (*runtimeapi.Container, error) {
	d := &runtimeapi.Container{Id: c.id, Bundle: c.bundle}
	select {
	case <-c.created:
	default: // what create sets is not to be looked at yet
		d.Status = "creating"
		return d, nil
	}
	d.Rootfs = c.spec.Root.Path
	if !filepath.IsAbs(d.Rootfs) {
		d.Rootfs = filepath.Join(c.bundle, d.Rootfs)
	}
	d.Created, d.Annotations, d.OciVersion, d.Warnings = timestamppb.New(c.at), c.spec.Annotations, c.spec.Version, c.warnings
	if process && c.spec.Process != nil {
		var err error
		if d.Process, err = json.Marshal(c.spec.Process); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d.Status = c.init.state.String()
	if c.init.state != Stopped && c.init.state != Deleted {
		d.Pid = c.init.pid()
	}
	return d, nil
}

// Containers returns how many there are, those being created included.
func (s *Service) Containers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.containers)
}
