package vmtest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"

	vmeventsapi "vminit/api/services/vmevents/v1"
	"vminit/internal/microvm"
	"vminit/vsockstream"
)

// stall is a connection whose host can stop reading.
type stall struct {
	vsockstream.Conn
	reading sync.Mutex // who holds it keeps Read from beginning
}

func (s *stall) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	return s.Conn.Read(p)
}

// A subscriber that stops reading for a minute (three seconds without
// VMINIT_SOAK), while more happens than a socket holds, holds up nobody and
// gets every exit afterwards, once and in order.
func TestStalledSubscriber(t *testing.T) {
	g := Shared(t)
	ctx := soakContext(t, 4*time.Minute)
	base := g.Baseline(ctx, t)
	conn, err := g.VM.Dial(ctx, microvm.RPCPort)
	require.NoError(t, err)
	s := &stall{Conn: conn}
	client := ttrpc.NewClient(s)
	stream, err := vmeventsapi.NewTTRPCEventsClient(client).Stream(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	last := NewID()
	exits := make(chan string, 10_000)
	go func() {
		defer close(exits)
		for {
			env, err := stream.Recv()
			if err != nil {
				return
			}
			id, text, err := describe(env)
			if err == nil && env.Topic == "/tasks/exit" {
				exits <- text
			}
			if id == "c"+last && env.Topic == "/tasks/delete" {
				return
			}
		}
	}()
	run := func(n int, id string) string {
		t.Helper()
		p, err := g.Create(ctx, "c"+id, Spec("/bin/probe", "exit", fmt.Sprint(n%200)), false)
		require.NoError(t, err)
		require.NoError(t, p.Start(ctx))
		r, err := p.Finish(ctx)
		require.NoError(t, err)
		require.EqualValues(t, n%200, r.Code)
		return fmt.Sprintf("exit c%s %d", id, n%200)
	}
	first := run(0, NewID())
	require.Equal(t, first, awaitExit(ctx, t, exits, first))
	began := time.Now()
	for range 3 {
		first = run(0, NewID())
	}
	t.Logf("while it reads: %v each", (time.Since(began) / 3).Round(time.Millisecond))
	require.Equal(t, first, awaitExit(ctx, t, exits, first))

	// The Read under way has its lock until the next event comes.
	stopped := make(chan struct{})
	go func() { s.reading.Lock(); close(stopped) }()
	began = time.Now()
	var want []string
	for n := 1; n <= soak(500, 10) || time.Since(began) < time.Duration(soak(60, 3))*time.Second; n++ {
		want = append(want, run(n, NewID()))
	}
	<-stopped
	took := time.Since(began)
	t.Logf("%d containers while nobody read for %.1f s, %v each", len(want), took.Seconds(), (took / time.Duration(len(want))).Round(time.Millisecond))
	s.reading.Unlock()
	want = append(want, run(len(want)+1, last))
	var got []string
	for text := range exits {
		got = append(got, text)
	}
	require.Equal(t, want, got)
	client.Close()
	g.Restored(ctx, t, base)
}

// awaitExit reads exits until the wanted one: others are of earlier tests.
func awaitExit(ctx context.Context, t *testing.T, exits <-chan string, want string) string {
	for {
		select {
		case text, ok := <-exits:
			if !ok || text == want {
				return text
			}
		case <-ctx.Done():
			t.Fatalf("%s has not been told", want)
		}
	}
}
