package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"vminit/internal/sys"
)

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

// publishExit and publishOther publish an event that carries n as its pid.
func publishExit(t *testing.T, x *Exchange, n int) {
	t.Helper()
	if err := x.Publish("ns", topicExit, &eventtypes.TaskExit{ContainerID: "c", ID: "c", Pid: uint32(n)}); err != nil {
		t.Error(err)
	}
}

func publishOther(t *testing.T, x *Exchange, n int) {
	t.Helper()
	if err := x.Publish("ns", "/tasks/start", &eventtypes.TaskStart{ContainerID: "c", Pid: uint32(n)}); err != nil {
		t.Error(err)
	}
}

// number returns what publishExit or publishOther put in.
func number(t *testing.T, env *types.Envelope) int {
	t.Helper()
	if env.Topic == topicExit {
		var e eventtypes.TaskExit
		if err := proto.Unmarshal(env.Event.Value, &e); err != nil {
			t.Error(err)
		}
		return int(e.Pid)
	}
	var e eventtypes.TaskStart
	if err := proto.Unmarshal(env.Event.Value, &e); err != nil {
		t.Error(err)
	}
	return int(e.Pid)
}

// rest returns the numbers of all events a subscription has for now.
func rest(t *testing.T, s *Subscription) (got []int) {
	t.Helper()
	for {
		e, _ := s.take()
		if e == nil {
			return got
		}
		got = append(got, number(t, e.envelope()))
	}
}

func TestPublishStamps(t *testing.T) {
	x := NewExchange(discardLog())
	before := time.Now()
	require.NoError(t, x.Publish("moby", topicExit, &eventtypes.TaskExit{ContainerID: "c1", ExitStatus: 3}))
	env, err := x.Subscribe().Next(context.Background())
	require.NoError(t, err)
	require.Equal(t, "moby", env.Namespace)
	require.Equal(t, topicExit, env.Topic)
	require.Equal(t, "containerd.events.TaskExit", env.Event.TypeUrl, "as containerd's typeurl has it")
	require.WithinRange(t, env.Timestamp.AsTime(), before, time.Now())
	msg, err := env.Event.UnmarshalNew()
	require.NoError(t, err)
	require.EqualValues(t, 3, msg.(*eventtypes.TaskExit).ExitStatus)
}

func TestSubscriptions(t *testing.T) {
	x := NewExchange(discardLog())
	publishOther(t, x, 1)
	publishExit(t, x, 2)

	watcher := x.Observe()
	late := x.Subscribe()
	require.Equal(t, []int{1, 2}, rest(t, late), "a late subscriber gets what nobody has seen")
	require.Empty(t, rest(t, watcher), "an observer begins now")

	second := x.Subscribe()
	publishExit(t, x, 3)
	require.Equal(t, []int{3}, rest(t, second), "what was delivered is not repeated")
	require.Equal(t, []int{3}, rest(t, late))
	require.Equal(t, []int{3}, rest(t, watcher))

	late.Close()
	second.Close()
	publishExit(t, x, 4)
	publishOther(t, x, 5)
	require.Equal(t, []int{4, 5}, rest(t, watcher))
	back := x.Subscribe()
	require.Equal(t, []int{4, 5}, rest(t, back), "what only an observer saw is undelivered")
	require.Equal(t, 2, x.Stats().Subscribers)
}

func TestLost(t *testing.T) {
	x := NewExchange(discardLog())
	a := x.Subscribe()
	publishExit(t, x, 1)
	require.Equal(t, []int{1}, rest(t, a))
	since := time.Now()
	publishExit(t, x, 2)
	publishOther(t, x, 3)
	require.Equal(t, []int{2, 3}, rest(t, a))

	b := x.Subscribe() // the host is back before its old connection is known to be dead
	publishExit(t, x, 4)
	require.Equal(t, []int{4}, rest(t, b))
	require.Equal(t, []int{4}, rest(t, a))
	a.Lost(since)
	require.Equal(t, []int{2, 3}, rest(t, b), "lost with a; 4 has reached b")
	publishExit(t, x, 5)
	require.Equal(t, []int{5}, rest(t, b))
	b.Close()
	require.Empty(t, rest(t, x.Subscribe()))
}

// TestSlowSubscriber: one that never reads does not delay publishing, and gets
// every exit and the newest of the rest, in order.
func TestSlowSubscriber(t *testing.T) {
	x := NewExchange(discardLog())
	stuck, quick := x.Subscribe(), x.Subscribe()
	start := time.Now()
	const n = 5000
	for i := range n {
		if i%2 == 0 {
			publishExit(t, x, i)
		} else {
			publishOther(t, x, i)
		}
		if i%100 == 0 {
			rest(t, quick)
		}
	}
	require.Less(t, time.Since(start), 5*time.Second)
	got := rest(t, stuck)
	require.IsIncreasing(t, got)
	exits := 0
	for _, i := range got {
		if i%2 == 0 {
			exits++
		}
	}
	require.Equal(t, n/2, exits, "no exit is dropped")
	require.Equal(t, maxOthers, len(got)-exits)
	require.EqualValues(t, n/2-maxOthers, x.Stats().DroppedOther)
	require.Zero(t, x.Stats().DroppedExits)
}

func TestBounds(t *testing.T) {
	x := NewExchange(discardLog())
	for i := range maxExits + 100 {
		publishExit(t, x, i)
	}
	st := x.Stats()
	require.Equal(t, maxExits, st.Kept)
	require.EqualValues(t, 100, st.DroppedExits)
	require.Equal(t, 100, rest(t, x.Subscribe())[0], "the oldest went")
}

func TestSettledEventsAreForgotten(t *testing.T) {
	x := NewExchange(discardLog())
	s := x.Subscribe()
	for i := range 100 {
		publishExit(t, x, i)
	}
	rest(t, s)
	require.Equal(t, 100, x.Stats().Kept, "still in doubt")
	x.mu.Lock()
	for _, e := range x.exits.entries {
		e.last = e.last.Add(-2 * inDoubt)
	}
	x.mu.Unlock()
	publishExit(t, x, 100)
	require.Equal(t, 1, x.Stats().Kept)
	require.Equal(t, []int{100}, rest(t, s))
}

func TestDrainAndClose(t *testing.T) {
	ctx := context.Background()
	x := NewExchange(discardLog())
	publishExit(t, x, 1)
	require.NoError(t, x.Drain(ctx), "nobody to wait for")

	s := x.Subscribe()
	x.Observe() // never reads, and is not waited for
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, x.Drain(short), context.DeadlineExceeded)

	drained := make(chan error)
	go func() { drained <- x.Drain(ctx) }()
	_, err := s.Next(ctx)
	require.NoError(t, err)
	select {
	case <-drained:
		t.Fatal("drained before the subscriber has come back for more")
	case <-time.After(20 * time.Millisecond):
	}
	go func() {
		for {
			if _, err := s.Next(ctx); err != nil {
				drained <- err
				return
			}
		}
	}()
	require.NoError(t, <-drained)
	publishExit(t, x, 2)
	require.NoError(t, x.Drain(ctx))
	x.Close()
	require.ErrorIs(t, <-drained, io.EOF)
	require.ErrorIs(t, x.Publish("ns", topicExit, &eventtypes.TaskExit{}), sys.ErrState)

	left := x.Subscribe()
	_, err = left.Next(ctx)
	require.ErrorIs(t, err, io.EOF)
}

// TestCloseHandsOverTheRest: events published before Close reach a subscriber.
func TestCloseHandsOverTheRest(t *testing.T) {
	x := NewExchange(discardLog())
	s := x.Subscribe()
	publishExit(t, x, 1)
	x.Close()
	env, err := s.Next(context.Background())
	require.NoError(t, err)
	require.Equal(t, 1, number(t, env))
	_, err = s.Next(context.Background())
	require.ErrorIs(t, err, io.EOF)
}

// TestExitsAcrossReconnects: with subscribers that come and go at random, some
// losing the last event on the way, every exit is seen once.
func TestExitsAcrossReconnects(t *testing.T) {
	x := NewExchange(discardLog())
	const n = 3000
	var publishers sync.WaitGroup
	publishers.Go(func() {
		for i := range n {
			publishExit(t, x, i)
			if i%7 == 0 {
				publishOther(t, x, i)
			}
			if i%100 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	})
	go func() { publishers.Wait(); x.Close() }()

	seen := map[int]int{}
	for done := false; !done; {
		sub := x.Subscribe()
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(3000))*time.Microsecond)
		for {
			asked := time.Now()
			env, err := sub.Next(ctx)
			if err != nil {
				done = errors.Is(err, io.EOF)
				sub.Close()
				break
			}
			if rand.IntN(20) == 0 { // the connection breaks before it is sent
				sub.Lost(asked)
				break
			}
			if env.Topic == topicExit {
				seen[number(t, env)]++
			}
		}
		cancel()
	}
	require.Len(t, seen, n)
	for i, times := range seen {
		require.Equal(t, 1, times, "exit %d", i)
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, subs := range []int{0, 1, 8} {
		b.Run(fmt.Sprintf("subscribers=%d", subs), func(b *testing.B) {
			x := NewExchange(discardLog())
			ctx := b.Context()
			for range subs {
				s := x.Subscribe()
				go func() {
					for {
						if _, err := s.Next(ctx); err != nil {
							return
						}
					}
				}()
			}
			ev := &eventtypes.TaskExit{ContainerID: "c", ID: "c", Pid: 7}
			b.ReportAllocs()
			for b.Loop() {
				x.Publish("ns", topicExit, ev)
			}
		})
	}
}
