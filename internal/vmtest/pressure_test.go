package vmtest

import (
	"strings"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	guestapi "vminit/api/services/guest/v1"
)

// A workload without a limit takes all memory there is: the kernel ends it, not
// the daemon, which answers all the while, nor the container beside it.
func TestMemoryPressure(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	quiet := g.Running(ctx, t, Spec("/bin/sleep", "100000"))
	// Each alone would find room.
	const script = "probe eatmem -hold 60s 700M > /dev/null & probe eatmem 700M > /dev/null; a=$?; kill $!; wait $!; echo $a $?"
	p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/sh", "-c", script), false)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	ended := make(chan Result, 1)
	go func() {
		r, err := p.Finish(ctx)
		if err != nil {
			t.Errorf("%v", err)
		}
		ended <- r
	}()
	answers, slowest := 0, time.Duration(0)
	for done := false; !done; answers++ {
		began := time.Now()
		st, err := g.Task.State(ctx, &taskv3.StateRequest{ID: quiet.ID()})
		require.NoError(t, err)
		require.Equal(t, "RUNNING", st.Status.String())
		slowest = max(slowest, time.Since(began))
		select {
		case r := <-ended:
			require.Equal(t, 1, strings.Count(r.Stdout, "137"), "one of them is killed by the kernel: %+v", r)
			done = true
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Logf("%d answers meanwhile, the slowest after %v", answers, slowest.Round(time.Millisecond))
	g.end(t, quiet)
	g.Restored(ctx, t, base)
}

// /dev/shm filled to its size is the container's own trouble, and goes with it.
func TestShmFilled(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	r, err := g.Run(ctx, Spec("/bin/sh", "-c", "dd if=/dev/zero of=/dev/shm/f bs=1M 2>&1; stat -c %s /dev/shm/f; echo x > /dev/shm/g"))
	require.NoError(t, err)
	require.Contains(t, r.Stdout, "No space left on device")
	require.Contains(t, r.Stdout, "67108864")
	require.NotZero(t, r.Code)
	g.Restored(ctx, t, base)
}

// Arguments that the kernel does not take are the caller's mistake, said as
// such, of an exec and of an init.
func TestHugeArguments(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	c := g.Running(ctx, t, Spec("/bin/sleep", "100000"))
	huge := []string{"/bin/true", strings.Repeat("x", 200<<10)}
	e, err := g.Exec(ctx, c.ID(), Spec(huge...).Process, false)
	require.NoError(t, err)
	i, err := g.Create(ctx, "c"+NewID(), Spec(huge...), false)
	require.NoError(t, err)
	for _, p := range []*Process{e, i} {
		err := p.Start(ctx)
		require.Equal(t, codes.InvalidArgument, codeOf(err), err)
		require.ErrorContains(t, err, "argument list too long")
		require.NoError(t, p.Delete(ctx))
		p.Abandon()
	}
	g.end(t, c)
	g.Restored(ctx, t, base)
}

// A guest that was stopped for an hour is told the time by its host; deadlines
// and timers of the daemon run on the monotonic clock and do not mind.
func TestClockStepped(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	now := func() int64 {
		r, err := g.Run(ctx, Spec("/bin/date", "+%s"))
		require.NoError(t, err)
		var n int64
		for _, d := range strings.TrimSpace(r.Stdout) {
			n = 10*n + int64(d-'0')
		}
		return n
	}
	set := func(at time.Time) {
		_, err := g.API.SetTime(ctx, &guestapi.SetTimeRequest{Time: timestamppb.New(at)})
		require.NoError(t, err)
	}
	defer func() { set(time.Now()) }()
	p := g.Running(ctx, t, Spec("/bin/sleep", "4"))
	for _, off := range []time.Duration{-time.Hour, time.Hour, 0} {
		want := time.Now().Add(off)
		set(want)
		require.InDelta(t, want.Unix(), now(), 20)
	}
	w, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: p.ID()})
	require.NoError(t, err)
	require.Zero(t, w.ExitStatus)
}
