package tasksvc

import (
	"context"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
)

// Register adds the Task API to a server, under the names of version 3 and of
// version 2, whose messages are the same on the wire.
func (s *Service) Register(srv *ttrpc.Server) {
	methods := map[string]ttrpc.Method{
		"State": unary(s.State), "Create": unary(s.Create), "Start": unary(s.Start), "Delete": unary(s.Delete), "Pids": unary(s.Pids),
		"Pause": unary(s.Pause), "Resume": unary(s.Resume), "Checkpoint": unary(s.Checkpoint), "Kill": unary(s.Kill), "Exec": unary(s.Exec),
		"ResizePty": unary(s.ResizePty), "CloseIO": unary(s.CloseIO), "Update": unary(s.Update), "Wait": unary(s.Wait), "Stats": unary(s.Stats),
		"Connect": unary(s.Connect), "Shutdown": unary(s.Shutdown),
	}
	for _, name := range []string{"containerd.task.v3.Task", "containerd.task.v2.Task"} {
		srv.RegisterService(name, &ttrpc.ServiceDesc{Methods: methods})
	}
}

var _ taskv3.TTRPCTaskService = (*Service)(nil)

func unary[Request, Response any](call func(context.Context, *Request) (*Response, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		r := new(Request)
		if err := unmarshal(r); err != nil {
			return nil, err
		}
		return call(ctx, r)
	}
}
