package vmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	bundleapi "vminit/api/services/bundle/v1"
	"vminit/vsockstream"
)

// Result is what a process left behind.
type Result struct {
	Stdout, Stderr string
	Code           uint32
}

// Process is the stdio of a process that runs in the guest.
type Process struct {
	g        *Guest
	id, exec string
	uris     [3]string // of stdin, stdout, stderr; "" for none
	conns    [3]vsockstream.Conn
	output   [3]chan string
}

var serial atomic.Uint32

// NewID returns a container or stream id not used before.
func NewID() string { return strconv.Itoa(int(serial.Add(1))) }

// Create makes the bundle and the container. stdin says whether there is one.
func (g *Guest) Create(ctx context.Context, id string, spec *specs.Spec, stdin bool) (*Process, error) {
	return g.create(ctx, id, spec, stdin, RootMounts())
}

// CreateAt is Create, without stdin, on a root file system of the caller's.
func (g *Guest) CreateAt(ctx context.Context, id string, spec *specs.Spec, root []*types.Mount) (*Process, error) {
	return g.create(ctx, id, spec, false, root)
}

func (g *Guest) create(ctx context.Context, id string, spec *specs.Spec, stdin bool, root []*types.Mount) (*Process, error) {
	config, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	return g.CreateRaw(ctx, &taskv3.CreateTaskRequest{ID: id, Rootfs: root, Terminal: spec.Process != nil && spec.Process.Terminal}, config, stdin)
}

// CreateRaw makes a bundle with the given config.json, none if it is nil, and
// the container that r describes with its bundle and stdio filled in.
func (g *Guest) CreateRaw(ctx context.Context, r *taskv3.CreateTaskRequest, config []byte, stdin bool) (*Process, error) {
	if err := g.MakeBundle(ctx, r, config); err != nil {
		return nil, err
	}
	p, err := g.openStdio(ctx, stdin, r.Terminal)
	if err != nil {
		return nil, err
	}
	p.id, r.Stdin, r.Stdout, r.Stderr = r.ID, p.uris[0], p.uris[1], p.uris[2]
	if _, err := g.Task.Create(ctx, r); err != nil {
		p.Abandon()
		return nil, err
	}
	return p, nil
}

// MakeBundle makes the bundle of a container to be created.
func (g *Guest) MakeBundle(ctx context.Context, r *taskv3.CreateTaskRequest, config []byte) error {
	files := map[string][]byte{}
	if config != nil {
		files["config.json"] = config
	}
	b, err := g.Bundle.Create(ctx, &bundleapi.CreateRequest{Id: r.ID, Files: files})
	if err != nil {
		return err
	}
	r.Bundle = b.Bundle
	return nil
}

// Stream opens a stream and returns the URI that names it in a request.
func (g *Guest) Stream(ctx context.Context) (uri string, c vsockstream.Conn, err error) {
	id := NewID()
	c, err = g.VM.OpenStream(ctx, id)
	return "stream://" + id, c, err
}

// openStdio opens the streams of a process.
func (g *Guest) openStdio(ctx context.Context, stdin, terminal bool) (p *Process, err error) {
	p = &Process{g: g}
	defer func() {
		if err != nil {
			p.Abandon()
		}
	}()
	for i := range 3 {
		if i == 0 && !stdin || i == 2 && terminal {
			continue
		}
		uri, c, err := g.Stream(ctx)
		if err != nil {
			return p, err
		}
		context.AfterFunc(ctx, func() { c.Close() }) // nobody reads for ever
		p.uris[i], p.conns[i] = uri, c
		if i > 0 {
			p.output[i] = make(chan string, 1)
		}
	}
	return p, nil
}

// collect reads a stream to its end.
func collect(c vsockstream.Conn, to chan<- string) {
	data, err := io.ReadAll(c)
	if err != nil {
		data = append(data, "\n[read: "+err.Error()+"]"...)
	}
	to <- string(data)
}

// Abandon closes the host's ends of the process's streams.
func (p *Process) Abandon() {
	for _, c := range p.conns {
		if c != nil {
			c.Close()
		}
	}
}

// ID is the container's id, ExecID that of an exec in it.
func (p *Process) ID() string     { return p.id }
func (p *Process) ExecID() string { return p.exec }

// Stdin is the stream of the process's stdin; CloseWrite is the end of input.
func (p *Process) Stdin() vsockstream.Conn { return p.conns[0] }

// Stdout is the stream of the process's stdout. Once it is asked for, which
// must be before Start, the caller reads it.
func (p *Process) Stdout() vsockstream.Conn {
	p.output[1] = nil
	return p.conns[1]
}

// Start starts the process, and to read its output.
func (p *Process) Start(ctx context.Context) error {
	for i, to := range p.output {
		if to != nil {
			go collect(p.conns[i], to)
		}
	}
	_, err := p.g.Task.Start(ctx, &taskv3.StartRequest{ID: p.id, ExecID: p.exec})
	return err
}

// Delete takes the process, and with an init the container, away.
func (p *Process) Delete(ctx context.Context) error {
	if _, err := p.g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: p.id, ExecID: p.exec}); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

// Kill sends a signal to the process.
func (p *Process) Kill(ctx context.Context, sig syscall.Signal) error {
	_, err := p.g.Task.Kill(ctx, &taskv3.KillRequest{ID: p.id, ExecID: p.exec, Signal: uint32(sig)})
	return err
}

// PID is the process's id in the guest.
func (p *Process) PID(ctx context.Context) (uint32, error) {
	s, err := p.g.Task.State(ctx, &taskv3.StateRequest{ID: p.id, ExecID: p.exec})
	if err != nil {
		return 0, err
	}
	return s.Pid, nil
}

// Finish waits for the exit, deletes the process and returns what it wrote.
func (p *Process) Finish(ctx context.Context) (Result, error) {
	w, err := p.g.Task.Wait(ctx, &taskv3.WaitRequest{ID: p.id, ExecID: p.exec})
	if err != nil {
		return Result{}, fmt.Errorf("wait: %w", err)
	}
	if err := p.Delete(ctx); err != nil {
		return Result{}, err
	}
	defer p.Abandon()
	r := Result{Code: w.ExitStatus}
	for i, to := range []*string{nil, &r.Stdout, &r.Stderr} {
		if p.output[i] == nil {
			continue
		}
		select {
		case *to = <-p.output[i]:
		case <-ctx.Done():
			return r, errors.New("output did not end")
		}
	}
	return r, nil
}

// Run takes a container through its whole life.
func (g *Guest) Run(ctx context.Context, spec *specs.Spec) (Result, error) {
	return g.RunAt(ctx, spec, RootMounts())
}

// RunAt is Run on a root file system of the caller's.
func (g *Guest) RunAt(ctx context.Context, spec *specs.Spec, root []*types.Mount) (Result, error) {
	p, err := g.CreateAt(ctx, "c"+NewID(), spec, root)
	if err != nil {
		return Result{}, fmt.Errorf("create: %w", err)
	}
	if err := p.Start(ctx); err != nil {
		_ = p.Delete(ctx)
		p.Abandon()
		return Result{}, fmt.Errorf("start: %w", err)
	}
	return p.Finish(ctx)
}

// Exec makes a process in a running container.
func (g *Guest) Exec(ctx context.Context, id string, spec *specs.Process, stdin bool) (*Process, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	p, err := g.openStdio(ctx, stdin, spec.Terminal)
	if err != nil {
		return nil, err
	}
	p.id, p.exec = id, "e"+NewID()
	_, err = g.Task.Exec(ctx, &taskv3.ExecProcessRequest{ID: id, ExecID: p.exec, Terminal: spec.Terminal, Stdin: p.uris[0], Stdout: p.uris[1], Stderr: p.uris[2],
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: data}})
	if err != nil {
		p.Abandon()
		return nil, err
	}
	return p, nil
}

// Context ends with the test or after a time that a guest under emulation on a
// busy machine does not need: 64 MiB may take it a minute.
func Context(t interface{ Cleanup(func()) }) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// end kills and deletes a container that may be in any state.
func (g *Guest) end(t testing.TB, p *Process) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := p.Kill(ctx, syscall.SIGKILL); err == nil {
		_, _ = g.Task.Wait(ctx, &taskv3.WaitRequest{ID: p.id})
	}
	if err := p.Delete(ctx); err != nil && status.Code(errors.Unwrap(err)) != codes.NotFound {
		t.Errorf("%v", err)
	}
	p.Abandon()
}
