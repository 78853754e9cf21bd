package vmtest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	guestapi "vminit/api/services/guest/v1"
)

// observed are the events of a guest since observe was called, each as a few
// words: "exec-started e1", "exit e1 7", "oom".
type observed struct {
	mu     sync.Mutex // guards all below
	events map[string][]string
	more   chan struct{} // closed and replaced when there are more
	err    error
}

// observe looks on until the test ends, on a connection of its own.
func (g *Guest) observe(ctx context.Context, t *testing.T) *observed {
	t.Helper()
	client, err := g.VM.Client(ctx)
	require.NoError(t, err)
	stream, err := guestapi.NewTTRPCGuestClient(client).Events(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	// The answer to a later request means that this one has been taken up.
	_, err = guestapi.NewTTRPCGuestClient(client).Timeline(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	o := &observed{events: map[string][]string{}, more: make(chan struct{})}
	var done sync.WaitGroup
	done.Go(func() { o.read(stream.Recv) })
	t.Cleanup(func() {
		client.Close()
		done.Wait()
	})
	return o
}

func (o *observed) read(next func() (*types.Envelope, error)) {
	for {
		env, err := next()
		var id, text string
		if err == nil {
			id, text, err = describe(env)
		}
		o.mu.Lock()
		o.err = err
		o.events[id] = append(o.events[id], text)
		close(o.more)
		o.more = make(chan struct{})
		o.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// of waits until the container has had the event last and returns all of it.
func (o *observed) of(t *testing.T, id, last string) []string {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		o.mu.Lock()
		events, more, err := o.events[id], o.more, o.err
		o.mu.Unlock()
		if len(events) > 0 && events[len(events)-1] == last {
			return events
		}
		require.NoError(t, err)
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("no event %q of container %s after %q", last, id, events)
		}
	}
}

// describe makes words of an event.
func describe(env *types.Envelope) (id, text string, err error) {
	decode := func(m proto.Message) error { return proto.Unmarshal(env.Event.Value, m) }
	switch env.Topic {
	case "/tasks/create":
		e := &eventsapi.TaskCreate{}
		err = decode(e)
		return e.ContainerID, "create", err
	case "/tasks/start":
		e := &eventsapi.TaskStart{}
		err = decode(e)
		return e.ContainerID, "start", err
	case "/tasks/exec-added":
		e := &eventsapi.TaskExecAdded{}
		err = decode(e)
		return e.ContainerID, "exec-added " + e.ExecID, err
	case "/tasks/exec-started":
		e := &eventsapi.TaskExecStarted{}
		err = decode(e)
		return e.ContainerID, "exec-started " + e.ExecID, err
	case "/tasks/exit":
		e := &eventsapi.TaskExit{}
		err = decode(e)
		return e.ContainerID, fmt.Sprintf("exit %s %d", e.ID, e.ExitStatus), err
	case "/tasks/oom":
		e := &eventsapi.TaskOOM{}
		err = decode(e)
		return e.ContainerID, "oom", err
	case "/tasks/paused":
		e := &eventsapi.TaskPaused{}
		err = decode(e)
		return e.ContainerID, "paused", err
	case "/tasks/resumed":
		e := &eventsapi.TaskResumed{}
		err = decode(e)
		return e.ContainerID, "resumed", err
	case "/tasks/delete":
		e := &eventsapi.TaskDelete{}
		err = decode(e)
		return e.ContainerID, "delete", err
	}
	return "", "", fmt.Errorf("unknown topic %s", env.Topic)
}
