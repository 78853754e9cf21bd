package tasksvc

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"vminit/internal/sys"
)

// sink is containerd's side of the forwarder.
type sink struct {
	t    *testing.T
	mu   sync.Mutex
	got  []int // guarded by mu
	fail func(n int) error
}

func (s *sink) Forward(_ context.Context, req *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := number(s.t, req.Envelope)
	if s.fail != nil {
		if err := s.fail(n); err != nil {
			return nil, err
		}
	}
	s.got = append(s.got, n)
	return &emptypb.Empty{}, nil
}

func (s *sink) numbers() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]int(nil), s.got...)
}

// serve listens on path until the returned function is called.
func (s *sink) serve(path string) (stop func()) {
	srv, err := ttrpc.NewServer()
	require.NoError(s.t, err)
	eventsapi.RegisterTTRPCEventsService(srv, s)
	l, err := net.Listen("unix", path)
	require.NoError(s.t, err)
	done := make(chan struct{})
	go func() { srv.Serve(context.Background(), l); close(done) }()
	return func() { // in order: what was taken has been answered
		require.NoError(s.t, srv.Shutdown(context.Background()))
		<-done
	}
}

func numbers(n int) (want []int) {
	for i := range n {
		want = append(want, i)
	}
	return want
}

func TestForward(t *testing.T) {
	x := NewExchange(discardLog())
	path := filepath.Join(t.TempDir(), "containerd.sock.ttrpc")
	f, err := NewForwarder(x, "unix://"+path, discardLog())
	require.NoError(t, err)
	done := make(chan error)
	go func() { done <- f.Run(context.Background()) }()

	publishExit(t, x, 0) // nobody listens yet
	publishOther(t, x, 1)
	s := &sink{t: t}
	stop := s.serve(path)
	arrived := func(n int) func() bool { return func() bool { return len(s.numbers()) == n } }
	require.Eventually(t, arrived(2), 10*time.Second, time.Millisecond)

	require.NoError(t, x.Drain(context.Background())) // answered, too: what was not would come once more
	stop()                                            // containerd restarts
	for i := 2; i < 50; i++ {
		publishExit(t, x, i)
	}
	time.Sleep(20 * time.Millisecond)
	defer s.serve(path)()
	require.Eventually(t, arrived(50), 10*time.Second, time.Millisecond)
	require.Equal(t, numbers(50), s.numbers(), "each once, in order")

	publishExit(t, x, 50)
	require.NoError(t, x.Drain(context.Background()))
	require.Equal(t, numbers(51), s.numbers(), "drained means forwarded")
	x.Close()
	require.NoError(t, <-done)
}

func TestForwardRefused(t *testing.T) {
	x := NewExchange(discardLog())
	path := filepath.Join(t.TempDir(), "s")
	tries := map[int]int{}
	s := &sink{t: t, fail: func(n int) error {
		tries[n]++
		switch {
		case n == 1:
			return status.Error(codes.InvalidArgument, "never")
		case n == 2 && tries[n] < forwardRefusals+3:
			return status.Error(codes.Unavailable, "starting")
		}
		return nil
	}}
	defer s.serve(path)()
	f, err := NewForwarder(x, path, discardLog())
	require.NoError(t, err)
	f.pause = time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	for i := range 4 {
		publishExit(t, x, i)
	}
	require.Eventually(t, func() bool { return len(s.numbers()) == 3 }, 30*time.Second, 5*time.Millisecond)
	require.Equal(t, []int{0, 2, 3}, s.numbers())
	require.Equal(t, forwardRefusals, tries[1])
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Zero(t, x.Stats().Subscribers)
}

// TestForwardNobodyThere: publishing goes on, and giving up leaves the event
// for others.
func TestForwardNobodyThere(t *testing.T) {
	x := NewExchange(discardLog())
	f, err := NewForwarder(x, filepath.Join(t.TempDir(), "none"), discardLog())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	for i := range 100 {
		publishExit(t, x, i)
	}
	require.ErrorIs(t, f.Run(ctx), context.DeadlineExceeded)
	require.Equal(t, numbers(100), rest(t, x.Subscribe()))
}

func TestForwardAddress(t *testing.T) {
	x := NewExchange(discardLog())
	for _, bad := range []string{"", "relative", "tcp://x", "unix://"} {
		_, err := NewForwarder(x, bad, discardLog())
		require.ErrorIs(t, err, sys.ErrInvalid, bad)
	}
	require.Zero(t, x.Stats().Subscribers)
}
