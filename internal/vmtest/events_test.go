package vmtest

import (
	"context"
	"syscall"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"

	vmeventsapi "vminit/api/services/vmevents/v1"
)

// create < start < execs < exit < delete, one exit for each process that was
// started and none for one that was not.
func TestEventOrder(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	events := g.observe(ctx, t)
	p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/probe", "sleep"), false)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))

	one, err := g.Exec(ctx, p.ID(), Spec("/bin/probe", "exit", "3").Process, false)
	require.NoError(t, err)
	require.NoError(t, one.Start(ctx))
	_, err = one.Finish(ctx)
	require.NoError(t, err)

	bad, err := g.Exec(ctx, p.ID(), Spec("nosuchcmd").Process, false)
	require.NoError(t, err)
	require.Error(t, bad.Start(ctx))
	require.NoError(t, bad.Delete(ctx))
	bad.Abandon()

	// Both are alive when init is killed, and die of it before it does.
	var alive []*Process
	for range 2 {
		e, err := g.Exec(ctx, p.ID(), Spec("/bin/probe", "sleep").Process, false)
		require.NoError(t, err)
		require.NoError(t, e.Start(ctx))
		alive = append(alive, e)
	}
	require.NoError(t, p.Kill(ctx, syscall.SIGKILL))
	_, err = p.Finish(ctx)
	require.NoError(t, err)
	for _, e := range alive {
		e.Abandon()
	}

	got := events.of(t, p.ID(), "delete")
	want := []string{
		"create", "start", "exec-added " + one.ExecID(), "exec-started " + one.ExecID(), "exit " + one.ExecID() + " 3",
		"exec-added " + bad.ExecID(),
		"exec-added " + alive[0].ExecID(), "exec-started " + alive[0].ExecID(),
		"exec-added " + alive[1].ExecID(), "exec-started " + alive[1].ExecID(),
	}
	require.Equal(t, want, got[:len(want)])
	rest := got[len(want):] // which of the two dies first is the kernel's business
	require.ElementsMatch(t, []string{"exit " + alive[0].ExecID() + " 137", "exit " + alive[1].ExecID() + " 137"}, rest[:2])
	require.Equal(t, []string{"exit " + p.ID() + " 137", "delete"}, rest[2:])
}

// An exit so fast that it comes while Start is being answered is still after
// the start.
func TestEventsOfShortLives(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	events := g.observe(ctx, t)
	for range 20 {
		p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/true"), false)
		require.NoError(t, err)
		require.NoError(t, p.Start(ctx))
		_, err = p.Finish(ctx)
		require.NoError(t, err)
		require.Equal(t, []string{"create", "start", "exit " + p.ID() + " 0", "delete"}, events.of(t, p.ID(), "delete"))
	}
}

// A host that subscribes late is told what it missed, once. The shared guest
// has had no subscriber so far.
func TestLateSubscriber(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/probe", "exit", "9"), false)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	_, err = p.Finish(ctx)
	require.NoError(t, err)

	want := []string{"create", "start", "exit " + p.ID() + " 9", "delete"}
	require.Equal(t, want, g.subscribe(ctx, t, p.ID(), len(want)))

	// Taken once, it is not sent again.
	p2, err := g.Create(ctx, "c"+NewID(), Spec("/bin/true"), false)
	require.NoError(t, err)
	require.NoError(t, p2.Start(ctx))
	_, err = g.Task.Wait(ctx, &taskv3.WaitRequest{ID: p2.ID()})
	require.NoError(t, err)
	var others []string
	got := g.subscribeAll(ctx, t, p2.ID(), 3, &others)
	require.Equal(t, want[:2], got[:2])
	require.Empty(t, others, "events of %s were delivered before", p.ID())
	_, err = p2.Finish(ctx)
	require.NoError(t, err)
}

func (g *Guest) subscribe(ctx context.Context, t *testing.T, id string, n int) []string {
	var others []string
	return g.subscribeAll(ctx, t, id, n, &others)
}

// subscribeAll reads the host's own event stream until n events of a container
// have come; those of others are put aside.
func (g *Guest) subscribeAll(ctx context.Context, t *testing.T, id string, n int, others *[]string) (events []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client, err := g.VM.Client(ctx)
	require.NoError(t, err)
	defer client.Close()
	stream, err := vmeventsapi.NewTTRPCEventsClient(client).Stream(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	for len(events) < n {
		env, err := stream.Recv()
		require.NoError(t, err)
		of, text, err := describe(env)
		require.NoError(t, err)
		if of == id {
			events = append(events, text)
		} else {
			*others = append(*others, of+" "+text)
		}
	}
	return events
}
