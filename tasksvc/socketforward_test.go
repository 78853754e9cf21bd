package tasksvc

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	forwardapi "vminit/api/services/socketforward/v1"
	"vminit/vsockstream"
)

// forwardHost is a guest's SocketForward service and the host of it.
type forwardHost struct {
	*SocketForward
	t       *testing.T
	framing vsockstream.Framing
	api     forwardapi.TTRPCSocketForwardClient
	streams string // address of the stream port
	dir     string
}

func newForwardHost(t *testing.T, framing vsockstream.Framing) *forwardHost {
	dir := t.TempDir()
	hub := vsockstream.NewHub(vsockstream.HubConfig{Framing: framing})
	t.Cleanup(func() { hub.Close() })
	h := &forwardHost{SocketForward: NewSocketForward(hub, framing, discardLog()), t: t, framing: framing, streams: "unix://" + dir + "/streams", dir: dir}
	t.Cleanup(h.Close)
	l, err := vsockstream.ListenConfig{}.Listen(h.streams)
	require.NoError(t, err)
	go hub.Serve(context.Background(), l)
	_, path := startServer(t, discardLog(), h.Register)
	client := ttrpc.NewClient(dial(t, path))
	h.api = forwardapi.NewTTRPCSocketForwardClient(client)
	return h
}

func (h *forwardHost) path(id string) string { return filepath.Join(h.dir, "fwd", id+".sock") }

func (h *forwardHost) bind(ids ...string) error {
	r := &forwardapi.BindRequest{}
	for _, id := range ids {
		r.Sockets = append(r.Sockets, &forwardapi.Socket{ForwardId: id, SocketPath: h.path(id)})
	}
	_, err := h.api.Bind(context.Background(), r)
	return err
}

// accept is a host that serves the forwards it knows: each says its id and
// echoes what comes. It returns when the service has the Accept: a connection
// that all who are there refuse is refused, and closed with what it has sent
// unread (the one who sent it sees a reset).
func (h *forwardHost) accept(ctx context.Context, known ...string) {
	h.mu.Lock()
	before := maps.Clone(h.accepters)
	h.mu.Unlock()
	stream, err := h.api.Accept(ctx)
	require.NoError(h.t, err)
	require.Eventually(h.t, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		for a := range h.accepters {
			if _, old := before[a]; !old {
				return true
			}
		}
		return false
	}, 10*time.Second, time.Millisecond)
	go func() {
		defer stream.CloseSend()
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			answer := &forwardapi.ConnectResult{StreamId: r.StreamId, Error: "unknown forward ID: " + r.ForwardId}
			for _, id := range known {
				if id == r.ForwardId {
					answer.Error = ""
					c, err := vsockstream.Dial(ctx, h.streams)
					if err == nil {
						err = vsockstream.Open(ctx, c, h.framing, r.StreamId)
					}
					if err != nil {
						answer.Error = err.Error()
						break
					}
					go func() {
						defer c.Close()
						fmt.Fprintf(c, "%s\n", id)
						io.Copy(c, c)
						c.CloseWrite()
						io.Copy(io.Discard, c)
					}()
				}
			}
			if stream.Send(answer) != nil {
				return
			}
		}
	}()
}

// ask connects as a container would and returns what comes back.
func (h *forwardHost) ask(id, text string) (string, error) {
	c, err := net.Dial("unix", h.path(id))
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if text != "" { // writing nothing fails, too, once the other end is closed
		if _, err := io.WriteString(c, text); err != nil {
			return "", err
		}
	}
	c.(*net.UnixConn).CloseWrite()
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestSocketForward(t *testing.T) {
	for _, framing := range []vsockstream.Framing{vsockstream.FramingU32, vsockstream.FramingString} {
		t.Run(framing.String(), func(t *testing.T) {
			h := newForwardHost(t, framing)
			require.NoError(t, h.bind("a", "b"))
			st, err := os.Stat(h.path("a"))
			require.NoError(t, err)
			require.Equal(t, os.ModeSocket|0o666, st.Mode(), "for every user of a container")

			// A connection may come before the host asks for any.
			early := make(chan string, 1)
			go func() {
				s, err := h.ask("a", "early")
				early <- fmt.Sprint(s, err)
			}()
			time.Sleep(20 * time.Millisecond)
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			h.accept(ctx, "a", "b")
			require.Equal(t, "a\nearly<nil>", <-early)
			big := strings.Repeat("0123456789abcdef", 20000)
			var all sync.WaitGroup
			for i := range 40 {
				all.Go(func() {
					id := string(rune('a' + i%2))
					got, err := h.ask(id, big)
					if err != nil || got != id+"\n"+big {
						t.Errorf("%d bytes, %v", len(got), err)
					}
				})
			}
			all.Wait()
			require.NoError(t, h.bind("a", "b"), "the same again is fine")
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
				h.mu.Lock()
				open, pending := h.open, len(h.pending)
				h.mu.Unlock()
				_, _, claimed := h.hub.Stats()
				if open+pending+claimed == 0 {
					break
				}
				require.True(t, time.Now().Before(deadline), "%d connections, %d questions, %d streams are left", open, pending, claimed)
			}
		})
	}
}

// Each container's Accept knows its own forwards only.
func TestForwardsSeveralAccepts(t *testing.T) {
	h := newForwardHost(t, vsockstream.FramingString)
	ids := []string{"a", "b", "c"}
	require.NoError(t, h.bind(ids...))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, id := range ids {
		h.accept(ctx, id)
	}
	for range 10 {
		for _, id := range ids {
			got, err := h.ask(id, "x")
			require.NoError(t, err)
			require.Equal(t, id+"\nx", got)
		}
	}
}

// A host that does not connect, and one that goes away, end the connection;
// nothing waits for ever.
func TestForwardsRefused(t *testing.T) {
	h := newForwardHost(t, vsockstream.FramingU32)
	h.timeout = 300 * time.Millisecond
	require.NoError(t, h.bind("a", "b"))
	got, err := h.ask("a", "")
	require.NoError(t, err)
	require.Empty(t, got, "nobody accepts")

	ctx, cancel := context.WithCancel(context.Background())
	h.accept(ctx, "a")
	got, err = h.ask("b", "")
	require.NoError(t, err)
	require.Empty(t, got, "the host does not know it")
	got, err = h.ask("a", "x")
	require.NoError(t, err)
	require.Equal(t, "a\nx", got)
	cancel()
}

// An Accept that ends with a question open: another takes it over. One that has
// been given up without a word, as ttrpc's clients do, is asked last.
func TestForwardsLostAccept(t *testing.T) {
	h := newForwardHost(t, vsockstream.FramingU32)
	h.timeout = 3 * time.Second
	require.NoError(t, h.bind("a", "b"))
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := h.api.Accept(ctx)
	require.NoError(t, err)
	asked := make(chan string, 1)
	go func() {
		r, err := stream.Recv()
		if err == nil {
			asked <- r.StreamId
		}
	}()
	answer := make(chan string, 1)
	go func() { s, _ := h.ask("a", "y"); answer <- s }()
	<-asked
	cancel()
	require.NoError(t, stream.CloseSend())
	ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	h.accept(ctx, "a")
	require.Equal(t, "a\ny", <-answer)

	silent, err := h.api.Accept(context.Background())
	require.NoError(t, err)
	require.NoError(t, silent.Send(&forwardapi.ConnectResult{StreamId: "99"}), "answers to nothing are ignored")
	cancel()
	require.Eventually(t, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return len(h.accepters) == 1
	}, 5*time.Second, time.Millisecond)
	go func() { s, _ := h.ask("b", "z"); answer <- s }()
	_, err = silent.Recv()
	require.NoError(t, err)
	h.accept(t.Context(), "b")
	require.Equal(t, "b\nz", <-answer)
	began := time.Now()
	for range 5 {
		got, err := h.ask("b", "z")
		require.NoError(t, err)
		require.Equal(t, "b\nz", got)
	}
	require.Less(t, time.Since(began), h.timeout, "it is asked last")
}

func TestForwardsBindErrors(t *testing.T) {
	h := newForwardHost(t, vsockstream.FramingU32)
	bind := func(sockets ...*forwardapi.Socket) codes.Code {
		_, err := h.api.Bind(context.Background(), &forwardapi.BindRequest{Sockets: sockets})
		return status.Code(err)
	}
	good := &forwardapi.Socket{ForwardId: "good", SocketPath: h.path("good")}
	for _, bad := range []*forwardapi.Socket{
		{ForwardId: "", SocketPath: h.path("x")}, {ForwardId: "x", SocketPath: ""}, {ForwardId: "x", SocketPath: "relative"},
		{ForwardId: "x", SocketPath: h.dir + "/a/../b"}, {ForwardId: "x", SocketPath: "/" + strings.Repeat("x", 107)},
		{ForwardId: strings.Repeat("x", 1025), SocketPath: h.path("x")},
	} {
		require.Equal(t, codes.InvalidArgument, bind(good, bad))
		require.NoFileExists(t, h.path("good"), "nothing is left")
	}
	taken := h.path("taken")
	require.NoError(t, os.MkdirAll(filepath.Dir(taken), 0o755))
	require.NoError(t, os.WriteFile(taken, []byte("data"), 0o600))
	require.Equal(t, codes.AlreadyExists, bind(good, &forwardapi.Socket{ForwardId: "x", SocketPath: taken}))
	require.NoFileExists(t, h.path("good"))
	require.FileExists(t, taken)
	require.Empty(t, h.forwards)
	require.Equal(t, codes.OK, bind(good))
	require.Equal(t, codes.AlreadyExists, bind(&forwardapi.Socket{ForwardId: "good", SocketPath: h.path("other")}))
	require.Equal(t, codes.AlreadyExists, bind(&forwardapi.Socket{ForwardId: "other", SocketPath: h.path("good")}))

	// A socket that a daemon before us has left is replaced.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.path("stale"), Net: "unix"})
	require.NoError(t, err)
	stale.SetUnlinkOnClose(false)
	stale.Close()
	require.NoError(t, h.bind("stale"))

	// The end of the daemon is the end of an Accept and of the sockets.
	stream, err := h.api.Accept(context.Background())
	require.NoError(t, err)
	var n atomic.Int32
	go func() { h.ask("good", ""); n.Add(1) }()
	time.Sleep(20 * time.Millisecond)
	h.Close()
	for err == nil {
		_, err = stream.Recv()
	}
	require.ErrorIs(t, err, io.EOF)
	require.Eventually(t, func() bool { return n.Load() == 1 }, 5*time.Second, time.Millisecond)
	require.NoFileExists(t, h.path("good"))
	require.Equal(t, codes.FailedPrecondition, bind(&forwardapi.Socket{ForwardId: "late", SocketPath: h.path("late")}))
}
