package tasksvc

import (
	"context"
	"fmt"

	"github.com/containerd/ttrpc"

	stdioapi "vminit/api/services/stdio/v1"
	"vminit/internal/sys"
)

// StdIO is the StdIO service: the stdio of processes made with rpcio:// URIs, by
// calls. It owns nothing; the processes' stdio does.
type StdIO struct{ tasks *Service }

// NewStdIO returns the service over the processes of tasks.
func NewStdIO(tasks *Service) *StdIO { return &StdIO{tasks} }

// Register adds the service to srv.
func (s *StdIO) Register(srv *ttrpc.Server) { stdioapi.RegisterTTRPCStdIOService(srv, s) }

// process finds a process and waits until it has its stdio, which an exec has
// when it is started.
func (s *StdIO) process(ctx context.Context, id, execID string) (*process, *stdio, error) {
	c, p, err := s.tasks.lookup(namespaceOf(ctx), id, execID)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Unlock()
	select {
	case <-p.launched:
	case <-p.exited: // it never will
	case <-ctx.Done():
		return nil, nil, fmt.Errorf("wait for the start of %s: %w", p.name(), ctx.Err())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.io == nil {
		return nil, nil, sys.Mark(sys.ErrState, fmt.Errorf("%s has never been started", p.name()))
	}
	return p, p.io, nil
}

// WriteStdin implements StdIO.WriteStdin. If the caller's deadline comes first
// the answer says how much was taken, unless that is nothing.
func (s *StdIO) WriteStdin(ctx context.Context, r *stdioapi.WriteStdinRequest) (*stdioapi.WriteStdinResponse, error) {
	p, io, err := s.process(ctx, r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if io.rpcIn == nil {
		return nil, notRPC(p, "stdin")
	}
	select {
	case <-p.exited:
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("%s has ended", p.name()))
	default:
	}
	n, err := io.rpcIn.write(ctx, r.Data)
	if err != nil && n == 0 {
		return nil, fmt.Errorf("write to stdin of %s: %w", p.name(), err)
	}
	return &stdioapi.WriteStdinResponse{BytesWritten: uint32(n)}, nil
}

// CloseStdin implements StdIO.CloseStdin; it is CloseIO of the Task API.
func (s *StdIO) CloseStdin(ctx context.Context, r *stdioapi.CloseStdinRequest) (*stdioapi.CloseStdinResponse, error) {
	p, io, err := s.process(ctx, r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if io.rpcIn == nil {
		return nil, notRPC(p, "stdin")
	}
	io.closeStdin()
	return &stdioapi.CloseStdinResponse{}, nil
}

// ReadStdout implements StdIO.ReadStdout.
func (s *StdIO) ReadStdout(ctx context.Context, r *stdioapi.ReadOutputRequest, stream stdioapi.TTRPCStdIO_ReadStdoutServer) error {
	return s.read(ctx, r, 1, stream.Send)
}

// ReadStderr implements StdIO.ReadStderr.
func (s *StdIO) ReadStderr(ctx context.Context, r *stdioapi.ReadOutputRequest, stream stdioapi.TTRPCStdIO_ReadStderrServer) error {
	return s.read(ctx, r, 2, stream.Send)
}

func (s *StdIO) read(ctx context.Context, r *stdioapi.ReadOutputRequest, fd int, send func(*stdioapi.OutputChunk) error) error {
	name := [3]string{1: "stdout", 2: "stderr"}[fd]
	return guardStream(s.tasks.log, "StdIO.Read "+name, func() error {
		ctx, err := withNamespace(ctx)
		if err != nil {
			return err
		}
		p, io, err := s.process(ctx, r.ContainerId, r.ExecId)
		if err != nil {
			return err
		}
		out := io.rpcOut[fd-1]
		if out == nil {
			return notRPC(p, name)
		}
		reader := out.reader()
		defer reader.close()
		for {
			data, eof, err := reader.next(ctx)
			if err != nil {
				return fmt.Errorf("read %s of %s: %w", name, p.name(), err)
			}
			if err := send(&stdioapi.OutputChunk{Data: data, Eof: eof}); err != nil || eof {
				return err
			}
		}
	})
}

func notRPC(p *process, name string) error {
	return sys.Mark(sys.ErrState, fmt.Errorf("%s of %s is not for calls: it was not made with an rpcio:// URI", name, p.name()))
}
