package tasksvc

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	vmeventsapi "vminit/api/services/vmevents/v1"
)

// receiver is what both generated clients have.
type receiver interface {
	Recv() (*types.Envelope, error)
}

func recvNumber(t *testing.T, r receiver) int {
	t.Helper()
	env, err := r.Recv()
	require.NoError(t, err)
	return number(t, env)
}

func TestStreamBothNames(t *testing.T) {
	x := NewExchange(discardLog())
	_, path := startServer(t, discardLog(), NewEvents(x, discardLog()).Register)
	publishExit(t, x, 1)

	ctx := context.Background()
	client := ttrpc.NewClient(dial(t, path))
	spinbox, err := vmeventsapi.NewTTRPCEventsClient(client).Stream(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	require.Equal(t, 1, recvNumber(t, spinbox))
	nerdbox, err := vmeventsapi.NewNerdboxTTRPCEventsClient(client).Stream(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return x.Stats().Subscribers == 2 }, 5*time.Second, time.Millisecond)
	publishExit(t, x, 2)
	require.Equal(t, 2, recvNumber(t, spinbox))
	require.Equal(t, 2, recvNumber(t, nerdbox))

	x.Close()
	_, err = spinbox.Recv()
	require.ErrorIs(t, err, io.EOF, "the end of the daemon is the end of the stream")
	_, err = nerdbox.Recv()
	require.ErrorIs(t, err, io.EOF)
}

// TestStreamStuckReader: a host that stops reading holds up neither publishing
// nor another host, and once it reads again it has all exits.
func TestStreamStuckReader(t *testing.T) {
	x := NewExchange(discardLog())
	_, path := startServer(t, discardLog(), NewEvents(x, discardLog()).Register)
	stuck, quick := dial(t, path), dial(t, path)
	openStream(t, stuck)
	openStream(t, quick)
	require.Eventually(t, func() bool { return x.Stats().Subscribers == 2 }, 5*time.Second, time.Millisecond)

	const n = 6000 // far more than a socket holds
	start := time.Now()
	go func() {
		for i := range n {
			publishExit(t, x, i)
			publishOther(t, x, i)
		}
	}()
	readExits := func(c io.Reader) (got []int) {
		for len(got) < n {
			env, err := readEvent(c)
			require.NoError(t, err)
			if env.Topic == topicExit {
				got = append(got, number(t, env))
			}
		}
		return got
	}
	want := readExits(quick)
	require.Less(t, time.Since(start), 10*time.Second)
	require.IsIncreasing(t, want)
	time.Sleep(100 * time.Millisecond)
	require.Equal(t, want, readExits(stuck))
}

// openStream asks for events on a raw connection.
func openStream(t *testing.T, c io.Writer) {
	t.Helper()
	_, err := c.Write(makeFrame(1, frameRequest, flagRemoteClosed,
		request("spinbox.services.vmevents.v1.Events", "Stream", &emptypb.Empty{})))
	require.NoError(t, err)
}

// readEvent reads an event from a raw connection; io.EOF at the stream's end.
func readEvent(c io.Reader) (*types.Envelope, error) {
	f, payload, err := readFrame(c)
	if err != nil {
		return nil, err
	}
	if f.kind != frameData {
		return nil, errors.New("not a data frame")
	}
	if f.flags&flagRemoteClosed != 0 {
		return nil, io.EOF
	}
	env := &types.Envelope{}
	return env, proto.Unmarshal(payload, env)
}

// TestStreamReconnects: a host whose connection drops again and again, at any
// moment, sees every exit, and sees it once as long as it had read what
// reached its socket. (It shuts its reading side down in good order: what was
// sent before that it still reads.)
func TestStreamReconnects(t *testing.T) {
	x := NewExchange(discardLog())
	_, path := startServer(t, discardLog(), NewEvents(x, discardLog()).Register)
	const n = 2000
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := range n {
			publishExit(t, x, i)
			if i%3 == 0 {
				publishOther(t, x, i)
			}
			if i%20 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
	seen, connections := map[int]int{}, 0
	for len(seen) < n {
		c := dial(t, path)
		connections++
		openStream(t, c)
		for quit := 1 + rand.IntN(60); ; quit-- {
			if quit == 0 {
				require.NoError(t, c.CloseRead()) // the server's next write fails
			}
			env, err := readEvent(c)
			if err != nil {
				break
			}
			if env.Topic == topicExit {
				seen[number(t, env)]++
			}
			if len(seen) == n {
				break
			}
		}
		c.Close()
	}
	publishing.Wait()
	for i, times := range seen {
		require.Equal(t, 1, times, "exit %d", i)
	}
	require.Greater(t, connections, 10)
	require.Zero(t, x.Stats().DroppedExits)
}

// TestStreamReset: a host that dies with events unread gets them again.
func TestStreamReset(t *testing.T) {
	x := NewExchange(discardLog())
	_, path := startServer(t, discardLog(), NewEvents(x, discardLog()).Register)
	c := dial(t, path)
	openStream(t, c)
	for i := range 10 {
		publishExit(t, x, i)
	}
	for i := range 3 {
		env, err := readEvent(c)
		require.NoError(t, err)
		require.Equal(t, i, number(t, env))
	}
	require.Eventually(t, func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.exits.entries[len(x.exits.entries)-1].handed == 1
	}, 5*time.Second, time.Millisecond)
	time.Sleep(20 * time.Millisecond) // all of it is in the socket now
	c.Close()
	require.Eventually(t, func() bool { return x.Stats().Subscribers == 0 }, 5*time.Second, time.Millisecond)

	again := dial(t, path)
	openStream(t, again)
	publishExit(t, x, 10)
	var got []int
	for len(got) == 0 || got[len(got)-1] != 10 {
		env, err := readEvent(again)
		require.NoError(t, err)
		got = append(got, number(t, env))
	}
	require.IsIncreasing(t, got)
	require.Subset(t, got, []int{3, 4, 5, 6, 7, 8, 9, 10})
}

// TestStreamSurvivesShutdown: what was published before the end arrives.
func TestStreamSurvivesShutdown(t *testing.T) {
	x := NewExchange(discardLog())
	s, path := startServer(t, discardLog(), NewEvents(x, discardLog()).Register)
	c := dial(t, path)
	openStream(t, c)
	require.Eventually(t, func() bool { return x.Stats().Subscribers == 1 }, 5*time.Second, time.Millisecond)
	for i := range 100 {
		publishExit(t, x, i)
	}
	ctx := context.Background()
	require.NoError(t, x.Drain(ctx))
	x.Close()
	require.NoError(t, s.Shutdown(ctx))
	for i := range 100 {
		env, err := readEvent(c)
		require.NoError(t, err)
		require.Equal(t, i, number(t, env))
	}
	_, err := readEvent(c)
	require.ErrorIs(t, err, io.EOF)
}
