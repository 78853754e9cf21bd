package tasksvc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"vminit/internal/sys"
)

// testService is a service whose calls do what their names say.
type testService struct {
	release   chan struct{} // ends Wait
	namespace chan string
}

func (s *testService) Register(srv *ttrpc.Server) {
	call := func(f func(context.Context) (any, error)) ttrpc.Method {
		return func(ctx context.Context, unmarshal func(any) error) (any, error) {
			if err := unmarshal(&emptypb.Empty{}); err != nil {
				return nil, err
			}
			return f(ctx)
		}
	}
	srv.RegisterService("test.Test", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Ok": call(func(ctx context.Context) (any, error) {
			select {
			case s.namespace <- namespaceOf(ctx):
			default:
			}
			return &emptypb.Empty{}, nil
		}),
		"Invalid":  call(func(context.Context) (any, error) { return nil, sys.Invalidf("wrong thing") }),
		"BadText":  call(func(context.Context) (any, error) { return nil, errors.New("bad \xff byte") }),
		"Panic":    call(func(context.Context) (any, error) { panic("boom") }),
		"TooBig":   call(func(context.Context) (any, error) { return wrapperspb.Bytes(make([]byte, 5<<20)), nil }),
		"BigError": call(func(context.Context) (any, error) { return nil, errors.New(strings.Repeat("x", 5<<20)) }),
		"Wait": call(func(ctx context.Context) (any, error) {
			select {
			case <-s.release:
				return &emptypb.Empty{}, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}),
	}})
}

// startServer serves the given services on a unix socket.
func startServer(t *testing.T, log *slog.Logger, services ...func(*ttrpc.Server)) (*Server, string) {
	t.Helper()
	s, err := NewServer(log, services...)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		s.Shutdown(ctx)
		require.ErrorIs(t, <-served, ttrpc.ErrServerClosed)
	})
	return s, path
}

func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.UnixConn)
}

// readFrame reads one frame.
func readFrame(r io.Reader) (frame, []byte, error) {
	var h [frameHeaderLen]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return frame{}, nil, err
	}
	f := frame{binary.BigEndian.Uint32(h[:]), binary.BigEndian.Uint32(h[4:]), h[8], h[9]}
	payload := make([]byte, f.length)
	_, err := io.ReadFull(r, payload)
	return f, payload, err
}

// roundTrip makes a call on a raw connection and returns its status.
func roundTrip(t *testing.T, c net.Conn, id uint32, method string) *status.Status {
	t.Helper()
	_, err := c.Write(makeFrame(id, frameRequest, 0, request("test.Test", method, nil)))
	require.NoError(t, err)
	return readStatus(t, c, id)
}

func readStatus(t *testing.T, c net.Conn, id uint32) *status.Status {
	t.Helper()
	f, payload, err := readFrame(c)
	require.NoError(t, err)
	require.Equal(t, frame{f.length, id, frameResponse, 0}, f)
	var resp ttrpc.Response
	require.NoError(t, proto.Unmarshal(payload, &resp))
	return status.FromProto(resp.Status)
}

// TestReadinessProbe: ten zero bytes on a fresh connection are answered and
// the connection goes on, as often as a host likes.
func TestReadinessProbe(t *testing.T) {
	_, path := startServer(t, discardLog(), (&testService{}).Register)
	for range 3 {
		c := dial(t, path)
		for range 2 {
			_, err := c.Write(make([]byte, 10))
			require.NoError(t, err)
			require.Equal(t, codes.InvalidArgument, readStatus(t, c, 0).Code())
		}
		require.Equal(t, codes.OK, roundTrip(t, c, 1, "Ok").Code())
	}
}

// TestOversizedFrame: 5 MiB are refused, and the connection goes on.
func TestOversizedFrame(t *testing.T) {
	_, path := startServer(t, discardLog(), (&testService{}).Register)
	c := dial(t, path)
	go c.Write(makeFrame(1, frameRequest, 0, make([]byte, 5<<20)))
	require.Equal(t, codes.ResourceExhausted, readStatus(t, c, 1).Code())
	require.Equal(t, codes.OK, roundTrip(t, c, 3, "Ok").Code())
}

// TestStrayDataFrame: data for a call that takes none must not end the daemon.
func TestStrayDataFrame(t *testing.T) {
	svc := &testService{release: make(chan struct{})}
	_, path := startServer(t, discardLog(), svc.Register)
	c := dial(t, path)
	_, err := c.Write(makeFrame(1, frameRequest, 0, request("test.Test", "Wait", nil)))
	require.NoError(t, err)
	for _, stray := range [][]byte{
		makeFrame(1, frameData, 0, []byte("x")),
		makeFrame(1, frameData, flagRemoteClosed|4, nil),
		makeFrame(3, frameData, 0, nil),
	} {
		for i := range stray { // byte by byte
			_, err := c.Write(stray[i : i+1])
			require.NoError(t, err)
		}
	}
	close(svc.release)
	require.Equal(t, codes.OK, readStatus(t, c, 1).Code())
	require.Equal(t, codes.OK, roundTrip(t, c, 5, "Ok").Code())
}

func TestCalls(t *testing.T) {
	var out syncBuffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	_, path := startServer(t, log, (&testService{}).Register)
	c := dial(t, path)
	for i, tc := range []struct {
		method string
		code   codes.Code
		text   string
	}{
		{"Ok", codes.OK, ""},
		{"Invalid", codes.InvalidArgument, "wrong thing"},
		{"BadText", codes.Unknown, "bad \uFFFD byte"},
		{"Panic", codes.Internal, "boom"},
		{"TooBig", codes.ResourceExhausted, "5242"},
		{"BigError", codes.Unknown, "xxx"},
		{"Missing", codes.Unimplemented, "Missing"},
		{"Ok", codes.OK, ""},
	} {
		st := roundTrip(t, c, uint32(2*i+1), tc.method)
		require.Equal(t, tc.code, st.Code(), tc.method)
		require.Contains(t, st.Message(), tc.text, tc.method)
	}
	require.Contains(t, out.String(), "server_test.go", "the stack of the panic is logged")
	require.Contains(t, out.String(), "method=/test.Test/Invalid")
}

func TestNamespace(t *testing.T) {
	svc := &testService{namespace: make(chan string, 1)}
	_, path := startServer(t, discardLog(), svc.Register)
	client := ttrpc.NewClient(dial(t, path))
	call := func(md ttrpc.MD) error {
		return client.Call(ttrpc.WithMetadata(context.Background(), md), "test.Test", "Ok", &emptypb.Empty{}, &emptypb.Empty{})
	}
	require.NoError(t, call(nil))
	require.Equal(t, "default", <-svc.namespace)
	require.NoError(t, call(ttrpc.MD{namespaceHeader: {"moby"}}))
	require.Equal(t, "moby", <-svc.namespace)
	require.Equal(t, codes.InvalidArgument, status.Code(call(ttrpc.MD{namespaceHeader: {"../moby"}})))
}

// TestShutdown: calls that end in time are answered, even after a probe; the
// rest is cut off.
func TestShutdown(t *testing.T) {
	svc := &testService{release: make(chan struct{})}
	s, path := startServer(t, discardLog(), svc.Register)
	c := dial(t, path)
	_, err := c.Write(make([]byte, 10))
	require.NoError(t, err)
	readStatus(t, c, 0)
	_, err = c.Write(makeFrame(1, frameRequest, 0, request("test.Test", "Wait", nil)))
	require.NoError(t, err)
	waitUnanswered(t, s, 1)

	done := make(chan error)
	go func() { done <- s.Shutdown(context.Background()) }()
	time.Sleep(20 * time.Millisecond)
	close(svc.release)
	require.Equal(t, codes.OK, readStatus(t, c, 1).Code())
	_, _, err = readFrame(c)
	require.ErrorIs(t, err, io.EOF)
	select {
	case <-done:
		t.Fatal("the server has not waited for the peer to close")
	case <-time.After(20 * time.Millisecond):
	}
	c.Close()
	require.NoError(t, <-done)
	_, err = net.Dial("unix", path)
	require.Error(t, err)
}

// TestShutdownOfPeerThatStays: a peer that does not close holds nobody up for long.
func TestShutdownOfPeerThatStays(t *testing.T) {
	s, path := startServer(t, discardLog(), (&testService{}).Register)
	c := dial(t, path)
	_, err := c.Write(make([]byte, 10))
	require.NoError(t, err)
	readStatus(t, c, 0)
	began := time.Now()
	require.NoError(t, s.Shutdown(context.Background()))
	took := time.Since(began)
	require.GreaterOrEqual(t, took, lingerTimeout)
	require.Less(t, took, 2*lingerTimeout)
}

func TestShutdownCutsOff(t *testing.T) {
	svc := &testService{release: make(chan struct{})}
	s, path := startServer(t, discardLog(), svc.Register)
	c := dial(t, path)
	_, err := c.Write(makeFrame(1, frameRequest, 0, request("test.Test", "Wait", nil)))
	require.NoError(t, err)
	waitUnanswered(t, s, 1)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Shutdown(ctx), context.DeadlineExceeded)
	_, _, err = readFrame(c)
	require.Error(t, err)
}

// waitUnanswered waits until the server has n calls to answer.
func waitUnanswered(t *testing.T, s *Server, n int) {
	t.Helper()
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		have := 0
		for c := range s.conns {
			have += c.unanswered()
		}
		return have == n
	}, 5*time.Second, time.Millisecond)
}

// FuzzServer throws bytes at a server: it must survive and serve the next one.
func FuzzServer(f *testing.F) {
	f.Add(make([]byte, 10))
	f.Add(makeFrame(1, frameRequest, 0, request("test.Test", "Ok", nil)))
	f.Add(append(makeFrame(1, frameRequest, 0, request("test.Test", "Wait", nil)), makeFrame(1, frameData, 0, nil)...))
	f.Add(append(makeFrame(1, frameRequest, 2, request("nerdbox.services.socketforward.v1.SocketForward", "Accept", nil)), makeFrame(1, frameData, 1, []byte("x"))...))
	svc := &testService{release: make(chan struct{})}
	s, err := NewServer(discardLog(), svc.Register)
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, data []byte) {
		client, server := net.Pipe()
		done := make(chan struct{})
		go func() { s.ServeConn(context.Background(), server); close(done) }()
		go io.Copy(io.Discard, client)
		client.SetWriteDeadline(time.Now().Add(5 * time.Second))
		client.Write(data)
		client.Close()
		<-done
	})
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
