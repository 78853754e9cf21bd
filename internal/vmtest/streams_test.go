package vmtest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"

	"vminit/internal/vmtest/probe/pattern"
)

const big = 64 << 20

func TestStreamsApart(t *testing.T) {
	g := Shared(t)
	r, err := g.Run(Context(t), Spec("/bin/sh", "-c", "for i in 1 2 3; do echo out$i; echo err$i >&2; done; exit 7"))
	require.NoError(t, err)
	require.Equal(t, Result{"out1\nout2\nout3\n", "err1\nerr2\nerr3\n", 7}, r)
}

func TestExitCodes(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	c := g.Running(ctx, t, Spec("/bin/probe", "sleep"))
	for _, code := range []uint32{0, 1, 125, 127, 128, 255} {
		p, err := g.Exec(ctx, c.ID(), Spec("/bin/probe", "exit", fmt.Sprint(code)).Process, false)
		require.NoError(t, err)
		require.NoError(t, p.Start(ctx))
		r, err := p.Finish(ctx)
		require.NoError(t, err)
		require.Equal(t, code, r.Code)
	}
	r, err := g.Run(ctx, Spec("/bin/sh", "-c", "kill -USR1 $$; exit 3"))
	require.NoError(t, err)
	require.Equal(t, uint32(3), r.Code, "a signal that PID 1 of a namespace does not handle is dropped")
	p, err := g.Exec(ctx, c.ID(), Spec("/bin/sh", "-c", "kill -USR1 $$; exit 3").Process, false)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	r, err = p.Finish(ctx)
	require.NoError(t, err)
	require.Equal(t, uint32(128+10), r.Code)
}

// A command that is not there is named, nothing hangs and nothing is left.
func TestNoSuchCommand(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	p, err := g.Create(ctx, "c"+NewID(), Spec("nosuchcmd"), true)
	require.NoError(t, err)
	require.ErrorContains(t, p.Start(ctx), `exec "nosuchcmd": executable file not found in $PATH`)
	w, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: p.ID()})
	require.NoError(t, err)
	require.NotZero(t, w.ExitStatus)
	require.NoError(t, p.Delete(ctx))
	p.Abandon()
	g.Restored(ctx, t, base)
}

func TestStdin(t *testing.T) {
	g := Shared(t)
	for _, n := range []int64{0, 1, 100_000, big} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			ctx := Context(t)
			p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/probe", "sum"), true)
			require.NoError(t, err)
			require.NoError(t, p.Start(ctx))
			began := time.Now()
			h := sha256.New()
			written, err := io.Copy(onlyWriter{io.MultiWriter(p.Stdin(), h)}, pattern.NewReader(n))
			require.NoError(t, err)
			require.Equal(t, n, written)
			require.NoError(t, p.Stdin().CloseWrite())
			r, err := p.Finish(ctx)
			require.NoError(t, err)
			var sum struct {
				Bytes  int64
				SHA256 string
			}
			require.NoError(t, json.Unmarshal([]byte(r.Stdout), &sum), r.Stdout)
			require.Equal(t, n, sum.Bytes)
			require.Equal(t, hex.EncodeToString(h.Sum(nil)), sum.SHA256)
			t.Logf("%.1f MB/s", float64(n)/1e6/time.Since(began).Seconds())
		})
	}
}

// onlyWriter keeps io.Copy from being clever.
type onlyWriter struct{ io.Writer }

func TestStdout(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	for _, args := range [][]string{{}, {"-stderr"}} {
		p, err := g.Create(ctx, "c"+NewID(), Spec(append(append([]string{"/bin/probe", "burst"}, args...), fmt.Sprint(big))...), false)
		require.NoError(t, err)
		out := p.conns[1+len(args)]
		p.output[1+len(args)] = nil
		require.NoError(t, p.Start(ctx))
		began := time.Now()
		require.NoError(t, pattern.Check(out, big))
		t.Logf("%.1f MB/s", big/1e6/time.Since(began).Seconds())
		r, err := p.Finish(ctx)
		require.NoError(t, err)
		require.Equal(t, Result{}, r)
	}
}

// Bytes that go in come out, both ways at once.
func TestEcho(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/probe", "echo"), true)
	require.NoError(t, err)
	out := p.Stdout()
	require.NoError(t, p.Start(ctx))
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(onlyWriter{p.Stdin()}, pattern.NewReader(big/4))
		if err == nil {
			err = p.Stdin().CloseWrite()
		}
		sent <- err
	}()
	require.NoError(t, pattern.Check(out, big/4))
	require.NoError(t, <-sent)
	_, err = p.Finish(ctx)
	require.NoError(t, err)
}

// What is written before Start waits for the process.
func TestStdinBeforeStart(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/cat"), true)
	require.NoError(t, err)
	_, err = p.Stdin().Write([]byte("early"))
	require.NoError(t, err)
	require.NoError(t, p.Stdin().CloseWrite())
	require.NoError(t, p.Start(ctx))
	r, err := p.Finish(ctx)
	require.NoError(t, err)
	require.Equal(t, "early", r.Stdout)
}

// CloseIO ends stdin for a host that cannot half-close, after all it has sent.
func TestCloseIO(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/cat"), true)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	_, err = io.Copy(onlyWriter{p.Stdin()}, pattern.NewReader(1<<20))
	require.NoError(t, err)
	_, err = g.Task.CloseIO(ctx, &taskv3.CloseIORequest{ID: p.ID(), Stdin: true})
	require.NoError(t, err)
	r, err := p.Finish(ctx)
	require.NoError(t, err)
	require.Len(t, r.Stdout, 1<<20)
	require.Zero(t, r.Code)
}

// A child in the background keeps stdout open: the exit is reported at once,
// Delete does not wait for it for ever, and nothing stays.
func TestBackgroundChild(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	// Without a pid namespace the kernel does not end the child with init.
	spec := Spec("/bin/probe", "hold-stdout", "-exit", "4")
	spec.Linux.Namespaces = spec.Linux.Namespaces[1:]
	began := time.Now()
	r, err := g.Run(ctx, spec)
	require.NoError(t, err)
	require.Equal(t, uint32(4), r.Code)
	require.NotEmpty(t, r.Stdout)
	require.Less(t, time.Since(began), 30*time.Second)
	g.Restored(ctx, t, base)

	// In an exec nothing ends it: its output goes on, its exit is out.
	c := g.Running(ctx, t, Spec("/bin/probe", "sleep"))
	p, err := g.Exec(ctx, c.ID(), Spec("/bin/probe", "hold-stdout", "-exit", "5").Process, false)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	w, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: c.ID(), ExecID: p.ExecID()})
	require.NoError(t, err)
	require.Equal(t, uint32(5), w.ExitStatus)
	require.NoError(t, p.Delete(ctx), "within the deadline of the drain")
	p.Abandon()
	g.end(t, c)
	g.Restored(ctx, t, base)
}

// A reader that never reads stalls only its own container.
func TestStuckReader(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	stuck, err := g.Create(ctx, "c"+NewID(), Spec("/bin/probe", "burst", "8M"), false)
	require.NoError(t, err)
	stuck.Stdout()
	require.NoError(t, stuck.Start(ctx))
	r, err := g.Run(ctx, Spec("/bin/echo", "hello"))
	require.NoError(t, err)
	require.Equal(t, "hello\n", r.Stdout)
	s, err := g.Task.State(ctx, &taskv3.StateRequest{ID: stuck.ID()})
	require.NoError(t, err)
	require.Equal(t, "RUNNING", s.Status.String(), "it waits for its reader")
	g.end(t, stuck)
	g.Restored(ctx, t, base)
}
