package vmtest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	guestapi "vminit/api/services/guest/v1"
	"vminit/internal/vmtest/probe/pattern"
)

func marshalSpec(v any) ([]byte, error) { return json.Marshal(v) }

// Bursts of 8 MiB, the process gone and deleted at once, arrive to the byte: on
// streams, 100 of them with VMINIT_SOAK set, 3 else; and execs of 64 KiB,
// 2,000 or 30.
func TestBursts(t *testing.T) {
	g := Shared(t)
	ctx := soakContext(t, 20*time.Minute)
	base := g.Baseline(ctx, t)
	began := time.Now()
	for range soak(100, 3) {
		p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/probe", "burst", "-chunk", "1M", "-exit", "9", "8M"), false)
		require.NoError(t, err)
		p.burst(ctx, t, 8<<20)
	}
	t.Logf("8 MiB: %.1f s", time.Since(began).Seconds())
	began = time.Now()
	c := g.Running(ctx, t, Spec("/bin/probe", "sleep"))
	for range soak(2000, 30) {
		p, err := g.Exec(ctx, c.ID(), Spec("/bin/probe", "burst", "-exit", "9", "64K").Process, false)
		require.NoError(t, err)
		p.burst(ctx, t, 64<<10)
	}
	t.Logf("64 KiB: %.1f s", time.Since(began).Seconds())
	g.end(t, c)
	g.Restored(ctx, t, base)
}

// burst starts a process, deletes it as soon as it has ended, and only then
// asks whether everything it wrote has come.
func (p *Process) burst(ctx context.Context, t *testing.T, n int64) {
	t.Helper()
	out := p.Stdout()
	read := make(chan error, 1)
	go func() { read <- pattern.Check(out, n) }()
	require.NoError(t, p.Start(ctx))
	w, err := p.g.Task.Wait(ctx, &taskv3.WaitRequest{ID: p.id, ExecID: p.exec})
	require.NoError(t, err)
	require.Equal(t, uint32(9), w.ExitStatus)
	require.NoError(t, p.Delete(ctx))
	require.NoError(t, <-read)
	p.Abandon()
}

// The same on named pipes, whose reader is another container of the guest.
func TestBurstsOnFifos(t *testing.T) {
	g := Shared(t)
	ctx := soakContext(t, 20*time.Minute)
	base := g.Baseline(ctx, t)
	const script = `mkdir /mnt/bursts; mkfifo /mnt/bursts/f; echo ready
while read x; do probe sum < /mnt/bursts/f; done; rm -r /mnt/bursts`
	reader, err := g.Create(ctx, "c"+NewID(), Privileged("/bin/sh", "-c", script), true)
	require.NoError(t, err)
	sums := bufio.NewReader(reader.Stdout())
	require.NoError(t, reader.Start(ctx))
	line, err := sums.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	for _, tc := range []struct {
		size  int64
		count int
	}{{8 << 20, soak(100, 2)}, {64 << 10, soak(2000, 10)}} {
		h := sha256.New()
		_, err := io.Copy(h, pattern.NewReader(tc.size))
		require.NoError(t, err)
		want := fmt.Sprintf("{\"bytes\":%d,\"sha256\":\"%s\"}\n", tc.size, hex.EncodeToString(h.Sum(nil)))
		began := time.Now()
		for range tc.count {
			_, err := reader.Stdin().Write([]byte("\n"))
			require.NoError(t, err)
			r := &taskv3.CreateTaskRequest{ID: "c" + NewID(), Rootfs: RootMounts(), Stdout: "/bursts/f"}
			require.NoError(t, g.MakeBundle(ctx, r, marshal(t, Spec("/bin/probe", "burst", "-exit", "9", fmt.Sprint(tc.size)))))
			_, err = g.Task.Create(ctx, r)
			require.NoError(t, err)
			_, err = g.Task.Start(ctx, &taskv3.StartRequest{ID: r.ID})
			require.NoError(t, err)
			w, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: r.ID})
			require.NoError(t, err)
			require.Equal(t, uint32(9), w.ExitStatus)
			_, err = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: r.ID})
			require.NoError(t, err)
			line, err := sums.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, want, line)
		}
		t.Logf("%d of %d bytes: %.1f s", tc.count, tc.size, time.Since(began).Seconds())
	}
	require.NoError(t, reader.Stdin().CloseWrite())
	_, err = reader.Finish(ctx)
	require.NoError(t, err)
	g.Restored(ctx, t, base)
}

// One stream carries 1 GiB with VMINIT_SOAK set (48 MiB else) while the daemon's
// memory stays what an idle one's is, and as fast as a plain copy loop in the same guest.
func TestThroughput(t *testing.T) {
	g := Shared(t)
	ctx := soakContext(t, 20*time.Minute)
	const port = 7777
	size := int64(soak(1<<30, 48<<20))
	part := size / 3
	loop, err := g.Create(ctx, "c"+NewID(), privilegedProbe("vsock-copy", fmt.Sprint(port), fmt.Sprint(part)), false)
	require.NoError(t, err)
	t.Cleanup(func() { g.end(t, loop) })
	ready := loop.Stdout()
	require.NoError(t, loop.Start(ctx))
	_, err = ready.Read(make([]byte, 16))
	require.NoError(t, err)

	plain := func() float64 {
		c, err := g.VM.Dial(ctx, port)
		require.NoError(t, err)
		defer c.Close()
		began := time.Now()
		require.NoError(t, pattern.Check(c, part))
		return float64(part) / 1e6 / time.Since(began).Seconds()
	}
	daemon := func() float64 {
		p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/probe", "burst", "-exit", "9", fmt.Sprint(part)), false)
		require.NoError(t, err)
		out := p.Stdout()
		began := time.Now()
		require.NoError(t, p.Start(ctx))
		require.NoError(t, pattern.Check(out, part))
		speed := float64(part) / 1e6 / time.Since(began).Seconds()
		_, err = p.Finish(ctx)
		require.NoError(t, err)
		return speed
	}
	daemon()
	idle := g.swing(ctx, t)
	highest := g.highest(ctx, t)
	var ours, theirs []float64
	for range 3 {
		theirs = append(theirs, plain())
		ours = append(ours, daemon())
	}
	grown := int64(highest()) - int64(idle.rss)
	t.Logf("MB/s: %.1f of the daemon, %.1f of a copy loop; the daemon grew by %.2f MiB at most", ours, theirs, float64(grown)/(1<<20))
	require.LessOrEqual(t, grown, int64(streamSlack))
	slices.Sort(ours)
	slices.Sort(theirs)
	require.GreaterOrEqual(t, ours[1]/theirs[1], float64(soak(90, 75))/100, "of the speed of a copy loop")

	p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/probe", "burst", "-exit", "9", fmt.Sprint(size)), false)
	require.NoError(t, err)
	highest = g.highest(ctx, t)
	p.burst(ctx, t, size)
	grown = int64(highest()) - int64(idle.rss)
	t.Logf("%d MiB through one stream: the daemon grew by %.2f MiB at most", size>>20, float64(grown)/(1<<20))
	require.LessOrEqual(t, grown, int64(streamSlack))
	kept := int64(g.swing(ctx, t).live) - int64(idle.live)
	t.Logf("its heap kept %d KiB", kept>>10)
	require.LessOrEqual(t, kept, int64(keptSlack))
}

const (
	// streamSlack is what the daemon's memory may exceed that of an idle one by
	// while a stream flows: 0.2% of 1 GiB.
	streamSlack = 2 << 20
	// keptSlack is what may be left in its heap of some 2 GiB. A look finds the
	// heap up to 0.2 MiB above the least it was.
	keptSlack = 512 << 10
)

// swing is between what an idle daemon's memory swings: Go collects its heap
// when that has grown to 4 MiB, and asking for it is enough to make it grow
// (by 0.2 MiB each time). A single look may fall anywhere in between.
type swing struct{ rss, live uint64 }

// swing asks until the highest RSS has not changed by more than a few pages for
// five collections of the heap; live is the smallest heap seen.
func (g *Guest) swing(ctx context.Context, t *testing.T) swing {
	t.Helper()
	s := swing{live: math.MaxUint64}
	var last uint64
	began := time.Now()
	for collected := 0; collected < 5; {
		info, err := g.API.DebugInfo(ctx, &guestapi.DebugInfoRequest{})
		require.NoError(t, err)
		m := info.Memory
		if m.Rss > s.rss+64<<10 {
			collected = 0
		}
		s.rss, s.live = max(s.rss, m.Rss), min(s.live, m.Heap)
		if m.Heap < last {
			collected++
		}
		last = m.Heap
		require.Less(t, time.Since(began), 2*time.Minute, "memory does not settle")
	}
	t.Logf("the idle daemon: rss up to %.2f MiB, heap from %.2f MiB on, after %.1f s", mib(s.rss), mib(s.live), time.Since(began).Seconds())
	return s
}

func privilegedProbe(args ...string) *specs.Spec {
	return Privileged(append([]string{"/bin/probe"}, args...)...)
}

// highest watches the daemon's memory until the function it returns is called,
// which returns the highest seen.
func (g *Guest) highest(ctx context.Context, t *testing.T) func() uint64 {
	stop, top := make(chan struct{}), make(chan uint64, 1)
	go func() {
		var most uint64
		for {
			info, err := g.API.DebugInfo(ctx, &guestapi.DebugInfoRequest{})
			if err == nil {
				most = max(most, info.Memory.Rss)
			}
			select {
			case <-stop:
				top <- most
				return
			case <-time.After(500 * time.Millisecond):
			}
		}
	}()
	return func() uint64 {
		close(stop)
		return <-top
	}
}
