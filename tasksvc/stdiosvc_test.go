package tasksvc

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	stdioapi "vminit/api/services/stdio/v1"
)

// serve serves the Task API and more on a socket and connects to it.
func (h *host) serve(services ...func(*ttrpc.Server)) *ttrpc.Client {
	h.t.Helper()
	_, path := startServer(h.t.(*testing.T), h.log, append(services, h.Register)...)
	conn, err := net.Dial("unix", path)
	require.NoError(h.t, err)
	client := ttrpc.NewClient(conn)
	h.t.Cleanup(func() { client.Close() })
	return client
}

func openOutput(ctx context.Context, c stdioapi.TTRPCStdIOClient, fd int, id, exec string) (interface {
	Recv() (*stdioapi.OutputChunk, error)
}, error) {
	r := &stdioapi.ReadOutputRequest{ContainerId: id, ExecId: exec}
	if fd == 1 {
		return c.ReadStdout(ctx, r)
	}
	return c.ReadStderr(ctx, r)
}

// output reads stdout or stderr to its end.
func output(ctx context.Context, c stdioapi.TTRPCStdIOClient, fd int, id, exec string) (string, error) {
	stream, err := openOutput(ctx, c, fd, id, exec)
	var all strings.Builder
	for err == nil {
		var chunk *stdioapi.OutputChunk
		if chunk, err = stream.Recv(); err != nil {
			break
		}
		all.Write(chunk.Data)
		if chunk.Eof {
			if _, err = stream.Recv(); err == io.EOF {
				return all.String(), nil
			}
			return all.String(), fmt.Errorf("something comes after the end: %w", err)
		}
	}
	return all.String(), err
}

const rpcURI = "rpcio://c1/" // the same for all three, as hosts have it

func TestStdIO(t *testing.T) {
	h := newHost(t)
	client := h.serve(NewStdIO(h.Service).Register)
	c := stdioapi.NewTTRPCStdIOClient(client)
	ctx := h.ctx()
	_, err := h.Create(ctx, &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("cat; echo done >&2")), Stdin: rpcURI, Stdout: rpcURI, Stderr: rpcURI})
	require.NoError(t, err)

	want := string(randomBytes(3 << 20))
	var readers sync.WaitGroup
	attached := make(chan struct{}, 3)
	for range 3 { // two before Start, and one more
		readers.Go(func() {
			stream, err := openOutput(ctx, c, 1, "c1", "")
			if err != nil {
				t.Error(err)
			}
			var got strings.Builder
			chunk, err := stream.Recv()
			attached <- struct{}{}
			for ; err == nil; chunk, err = stream.Recv() {
				got.Write(chunk.Data)
				if chunk.Eof {
					break
				}
			}
			if err != nil || got.String() != want {
				t.Errorf("%d bytes, %v", got.Len(), err)
			}
		})
	}
	_, err = h.Start(ctx, &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	for b := []byte(want); len(b) > 0; {
		n := min(len(b), 50_000)
		if len(b) == len(want) { // all readers get the first bytes before there are more than are kept
			n = 1000
		}
		w, err := c.WriteStdin(ctx, &stdioapi.WriteStdinRequest{ContainerId: "c1", Data: b[:n]})
		require.NoError(t, err)
		require.EqualValues(t, n, w.BytesWritten)
		if len(b) == len(want) {
			for range 3 {
				<-attached
			}
		}
		b = b[n:]
	}
	_, err = c.CloseStdin(ctx, &stdioapi.CloseStdinRequest{ContainerId: "c1"})
	require.NoError(t, err)
	_, err = c.WriteStdin(ctx, &stdioapi.WriteStdinRequest{ContainerId: "c1", Data: []byte("x")})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), err)
	readers.Wait()
	_, err = h.Wait(ctx, &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	got, err := output(ctx, c, 2, "c1", "")
	require.NoError(t, err)
	require.Equal(t, "done\n", got)
	late, err := output(ctx, c, 1, "c1", "")
	require.NoError(t, err)
	require.NotEmpty(t, late)
	require.True(t, strings.HasSuffix(want, late))
	h.delete("c1")
	_, err = output(ctx, c, 1, "c1", "")
	require.Equal(t, codes.NotFound, status.Code(err), err)
}

// A reader of an exec may come before its start; a terminal works the same way;
// who reads when the container is deleted still gets the last byte.
func TestStdIOExec(t *testing.T) {
	h := newHost(t)
	client := h.serve(NewStdIO(h.Service).Register)
	c := stdioapi.NewTTRPCStdIOClient(client)
	ctx := h.ctx()
	h.running("c1", testSpec("sleep 1000"))
	exec := func(id, script string, terminal bool) {
		_, err := h.Exec(ctx, &taskv3.ExecProcessRequest{ID: "c1", ExecID: id, Stdin: rpcURI, Stdout: rpcURI, Terminal: terminal,
			Spec: mustAny(t, &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}})})
		require.NoError(t, err)
	}
	exec("e1", "echo hello", false)
	got := make(chan string, 1)
	go func() {
		s, err := output(ctx, c, 1, "c1", "e1")
		if err != nil {
			s = err.Error()
		}
		got <- s
	}()
	time.Sleep(50 * time.Millisecond)
	_, err := h.Start(ctx, &taskv3.StartRequest{ID: "c1", ExecID: "e1"})
	require.NoError(t, err)
	require.Equal(t, "hello\n", <-got)
	_, err = output(ctx, c, 2, "c1", "e1")
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "stderr has no URI")

	exec("tty", "stty size; read x; echo got $x", true)
	_, err = h.Start(ctx, &taskv3.StartRequest{ID: "c1", ExecID: "tty"})
	require.NoError(t, err)
	_, err = c.WriteStdin(ctx, &stdioapi.WriteStdinRequest{ContainerId: "c1", ExecId: "tty", Data: []byte("typed\n")})
	require.NoError(t, err)
	_, err = h.Wait(ctx, &taskv3.WaitRequest{ID: "c1", ExecID: "tty"})
	require.NoError(t, err)
	s, err := output(ctx, c, 1, "c1", "tty")
	require.NoError(t, err)
	require.Contains(t, s, "got typed\r\n")
	_, err = c.WriteStdin(ctx, &stdioapi.WriteStdinRequest{ContainerId: "c1", ExecId: "tty", Data: []byte("x")})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), err)

	// Never started: who waits for it is told when it is deleted.
	exec("e2", "true", false)
	never := make(chan error, 1)
	go func() { _, err := output(ctx, c, 1, "c1", "e2"); never <- err }()
	time.Sleep(20 * time.Millisecond)
	_, err = h.Delete(ctx, &taskv3.DeleteRequest{ID: "c1", ExecID: "e2"})
	require.NoError(t, err)
	require.Equal(t, codes.FailedPrecondition, status.Code(<-never))

	// A burst that nobody has read when the delete comes, save one.
	exec("e3", "head -c 200000 /dev/zero", false)
	_, err = h.Start(ctx, &taskv3.StartRequest{ID: "c1", ExecID: "e3"})
	require.NoError(t, err)
	stream, err := openOutput(ctx, c, 1, "c1", "e3")
	require.NoError(t, err)
	chunk, err := stream.Recv()
	require.NoError(t, err)
	n := len(chunk.Data)
	_, err = h.Delete(ctx, &taskv3.DeleteRequest{ID: "c1", ExecID: "e3"})
	for err != nil { // it may not have ended yet
		time.Sleep(time.Millisecond)
		_, err = h.Delete(ctx, &taskv3.DeleteRequest{ID: "c1", ExecID: "e3"})
	}
	for !chunk.Eof {
		chunk, err = stream.Recv()
		require.NoError(t, err)
		n += len(chunk.Data)
	}
	require.Equal(t, 200000, n)
}

func mustAny(t testing.TB, p *specs.Process) *anypb.Any {
	data, err := json.Marshal(p)
	require.NoError(t, err)
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: data}
}

// Wrong calls have the codes of the Task API.
func TestStdIOErrors(t *testing.T) {
	h := newHost(t)
	c := stdioapi.NewTTRPCStdIOClient(h.serve(NewStdIO(h.Service).Register))
	ctx := h.ctx()
	h.running("c1", testSpec("sleep 1000"))
	for _, tc := range []struct {
		id, exec string
		code     codes.Code
	}{{"c2", "", codes.NotFound}, {"c1", "e", codes.NotFound}, {"c1", "", codes.FailedPrecondition}, {"", "", codes.NotFound}} {
		_, err := c.WriteStdin(ctx, &stdioapi.WriteStdinRequest{ContainerId: tc.id, ExecId: tc.exec})
		require.Equal(t, tc.code, status.Code(err), err)
		_, err = c.CloseStdin(ctx, &stdioapi.CloseStdinRequest{ContainerId: tc.id, ExecId: tc.exec})
		require.Equal(t, tc.code, status.Code(err), err)
		for fd := 1; fd <= 2; fd++ {
			_, err = output(ctx, c, fd, tc.id, tc.exec)
			require.Equal(t, tc.code, status.Code(err), err)
		}
	}
}
