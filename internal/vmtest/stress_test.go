package vmtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"

	guestapi "vminit/api/services/guest/v1"
	systemapi "vminit/api/services/system/v1"
	vmeventsapi "vminit/api/services/vmevents/v1"
)

// lives are the ways a container's life can go. Each says what it expects of
// the n-th life and takes it to its end.
var lives = []func(ctx context.Context, g *Guest, n int) error{
	func(ctx context.Context, g *Guest, n int) error {
		return g.expect(ctx, n, Result{fmt.Sprintln(n), "e\n", uint32(n % 200)}, "")
	},
	func(ctx context.Context, g *Guest, n int) error { // with stdin
		return g.expect(ctx, n, Result{fmt.Sprintln(n), "e\n", uint32(n % 200)}, "line\n")
	},
	func(ctx context.Context, g *Guest, n int) error { // with a terminal
		spec := terminalSpec("/bin/sh", "-c", fmt.Sprintf("echo %d; echo e >&2; exit 3", n))
		p, err := g.Create(ctx, "c"+NewID(), spec, true)
		if err != nil {
			return err
		}
		if err := p.Start(ctx); err != nil {
			return err
		}
		return p.expect(ctx, Result{fmt.Sprintf("%d\r\ne\r\n", n), "", 3})
	},
	func(ctx context.Context, g *Guest, n int) error { // never started
		p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/true"), n%2 == 0)
		if err != nil {
			return err
		}
		defer p.Abandon()
		return p.Delete(ctx)
	},
	func(ctx context.Context, g *Guest, n int) error { // cannot be started
		p, err := g.Create(ctx, "c"+NewID(), Spec("nosuchcmd"), n%2 == 0)
		if err != nil {
			return err
		}
		defer p.Abandon()
		if p.Start(ctx) == nil {
			return errors.New("nosuchcmd has started")
		}
		return p.Delete(ctx)
	},
	func(ctx context.Context, g *Guest, n int) error { // with an exec, then killed
		p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/sleep", "1000"), false)
		if err != nil {
			return err
		}
		if err := p.Start(ctx); err != nil {
			return err
		}
		e, err := g.Exec(ctx, p.ID(), Spec("/bin/sh", "-c", fmt.Sprintf("echo %d; exit 5", n)).Process, false)
		if err != nil {
			return err
		}
		if err := e.Start(ctx); err != nil {
			return err
		}
		if err := e.expect(ctx, Result{fmt.Sprintln(n), "", 5}); err != nil {
			return err
		}
		if err := p.Kill(ctx, syscall.SIGKILL); err != nil {
			return err
		}
		return p.expect(ctx, Result{Code: 137})
	},
}

// expect runs a script that prints n and compares what came of it.
func (g *Guest) expect(ctx context.Context, n int, want Result, stdin string) error {
	script := fmt.Sprintf("echo %d; echo e >&2; exit %d", n, want.Code)
	if stdin != "" {
		script = "read x; " + script
	}
	p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/sh", "-c", script), stdin != "")
	if err != nil {
		return err
	}
	if stdin != "" {
		if _, err := p.Stdin().Write([]byte(stdin)); err != nil {
			return err
		}
	}
	if err := p.Start(ctx); err != nil {
		return err
	}
	return p.expect(ctx, want)
}

func (p *Process) expect(ctx context.Context, want Result) error {
	got, err := p.Finish(ctx)
	if err == nil && got != want {
		err = fmt.Errorf("%s%s: got %+v, want %+v", p.id, p.exec, got, want)
	}
	return err
}

// usage is what only has a bound: Go keeps threads it has made, and gives
// memory back when it likes.
type usage struct {
	threads int
	rss     uint64
	live    uint64 // bytes of the heap in use; only settled knows them
}

func (g *Guest) usage(ctx context.Context, t *testing.T) usage {
	t.Helper()
	info, err := g.API.DebugInfo(ctx, &guestapi.DebugInfoRequest{})
	require.NoError(t, err)
	t.Logf("%d goroutines, %d threads, %d descriptors, rss %.1f MiB (%.1f anonymous), heap %.1f MiB, runtime %.1f MiB", info.Goroutines, len(info.Threads), len(info.Fds),
		mib(info.Memory.Rss), mib(info.Memory.RssAnon), mib(info.Memory.Heap), mib(info.Memory.Runtime))
	return usage{threads: len(info.Threads), rss: info.Memory.Rss}
}

// forgetEvents takes the events, as a host does, until the test ends: what nobody
// has taken the daemon keeps (1,024 of them and 8,192 exits at most).
func (g *Guest) forgetEvents(ctx context.Context, t *testing.T) {
	client, err := g.VM.Client(ctx)
	require.NoError(t, err)
	stream, err := vmeventsapi.NewTTRPCEventsClient(client).Stream(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	// Once this is answered, what the daemon has for the stream is there.
	_, err = systemapi.NewTTRPCSystemClient(client).Info(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := stream.Recv(); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		client.Close()
		<-ended
	})
}

// settled is usage with the highest RSS that an idle daemon has, and its heap
// after a collection.
func (g *Guest) settled(ctx context.Context, t *testing.T) usage {
	t.Helper()
	u := g.usage(ctx, t)
	s := g.swing(ctx, t)
	u.rss, u.live = s.rss, s.live
	return u
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }

const (
	// rssSlack is what RSS may grow between the 50th and the 500th life, each
	// time the highest of an idle daemon (swing). Small leaks show in keptSlack:
	// one of 1.2 KiB a life exceeds it.
	rssSlack    = 2 << 20
	threadSlack = 2
)

func TestFiveHundredLives(t *testing.T) {
	g := Shared(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	g.forgetEvents(ctx, t)
	base := g.Baseline(ctx, t)
	live := func(from, to int) {
		began := time.Now()
		for n := from; n < to; n++ {
			require.NoError(t, lives[n%len(lives)](ctx, g, n), "life %d", n)
		}
		t.Logf("lives %d to %d: %.0f ms each", from, to-1, time.Since(began).Seconds()*1000/float64(to-from))
	}
	live(0, 50)
	g.Restored(ctx, t, base)
	early := g.settled(ctx, t)
	live(50, 500)
	g.Restored(ctx, t, base)
	late := g.settled(ctx, t)
	require.LessOrEqual(t, late.rss, early.rss+rssSlack)
	require.LessOrEqual(t, late.live, early.live+keptSlack)
	require.LessOrEqual(t, late.threads, early.threads+threadSlack)
}

func TestFiftyAtOnce(t *testing.T) {
	g := Shared(t)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	g.forgetEvents(ctx, t)
	base := g.Baseline(ctx, t)
	round := func() usage {
		began := time.Now()
		var all sync.WaitGroup
		errs := make([]error, 50)
		for n := range errs {
			all.Go(func() { errs[n] = lives[n%len(lives)](ctx, g, n) })
		}
		all.Wait()
		require.NoError(t, errors.Join(errs...))
		t.Logf("50 at once: %.1f s", time.Since(began).Seconds())
		g.Restored(ctx, t, base)
		return g.settled(ctx, t)
	}
	// Go keeps the threads of its busiest moment: four rounds have had one that the
	// fifth does not surpass.
	first := round()
	most := first
	for range 3 {
		next := round()
		most.threads, most.rss = max(most.threads, next.threads), max(most.rss, next.rss)
	}
	last := round()
	require.LessOrEqual(t, last.threads, most.threads+threadSlack)
	require.LessOrEqual(t, last.rss, most.rss+rssSlack)
	require.LessOrEqual(t, last.live, first.live+keptSlack)
}
