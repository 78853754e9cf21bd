package vmtest

import (
	"bufio"
	"context"
	"io"
	"slices"
	"syscall"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"vminit/internal/microvm"
	"vminit/internal/vmtest/probe/pattern"
)

// stuckDir is a file system that never answers, see probe fuse.
const stuckDir = "/stuck"

// One of each that is stuck (a reader that does not read, a process that does
// not read its stdin, a stream peer that says nothing, a fifo that is full,
// processes the kernel cannot kill) slows nobody else down: the state of
// another container comes as fast as from an idle daemon. What is stuck in the
// kernel cannot be deleted and says so in time; it can once it has ended.
func TestIsolation(t *testing.T) {
	g := Shared(t)
	ctx := soakContext(t, 4*time.Minute)
	base := g.Baseline(ctx, t)
	quiet := g.Running(ctx, t, Spec("/bin/sleep", "100000"))
	n := soak(1000, 200)
	idle := g.stateLatency(ctx, t, quiet, n)

	reader, err := g.Create(ctx, "c"+NewID(), Spec("/bin/probe", "burst", "64M"), false)
	require.NoError(t, err)
	reader.Stdout()
	require.NoError(t, reader.Start(ctx))

	writer, err := g.Create(ctx, "c"+NewID(), Spec("/bin/sleep", "100000"), true)
	require.NoError(t, err)
	require.NoError(t, writer.Start(ctx))
	go io.Copy(onlyWriter{writer.Stdin()}, pattern.NewReader(64<<20)) // until it is closed

	for _, say := range []string{"", "\x00"} {
		c, err := g.VM.Dial(ctx, microvm.StreamPort)
		require.NoError(t, err)
		defer c.Close()
		_, _ = c.Write([]byte(say))
	}

	r, err := g.Run(ctx, Privileged("/bin/sh", "-c", "mkdir /mnt/full && mkfifo /mnt/full/f"))
	require.NoError(t, err)
	require.Zero(t, r.Code, r.Stderr)
	full := &taskv3.CreateTaskRequest{ID: "c" + NewID(), Rootfs: RootMounts(), Stdout: "/full/f"}
	require.NoError(t, g.MakeBundle(ctx, full, marshal(t, Spec("/bin/probe", "burst", "1M"))))
	_, err = g.Task.Create(ctx, full)
	require.NoError(t, err)
	_, err = g.Task.Start(ctx, &taskv3.StartRequest{ID: full.ID})
	require.NoError(t, err)

	server, err := g.Create(ctx, "c"+NewID(), privilegedProbe("fuse", stuckDir), false)
	require.NoError(t, err)
	defer func() { g.end(t, server) }()
	said := bufio.NewReader(server.Stdout())
	require.NoError(t, server.Start(ctx))
	hears := func(want string) {
		t.Helper()
		line, err := said.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want+"\n", line)
	}
	hears("ready")
	// As init, in a namespace of its own; and as what an init has left behind.
	init := g.hangs(ctx, t, []string{"/bin/cat", "/hang/a"}, true)
	hears("stuck")
	left := g.hangs(ctx, t, []string{"/bin/sh", "-c", "cat /hang/b & sleep 1; exit 6"}, false)
	hears("stuck")
	w, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: left.ID()})
	require.NoError(t, err)
	require.Equal(t, uint32(6), w.ExitStatus, "what is left behind does not hold up the exit")
	require.NoError(t, init.Kill(ctx, syscall.SIGKILL))

	busy := g.stateLatency(ctx, t, quiet, n)
	for _, p := range []*Process{init, left} {
		began := time.Now()
		short, cancel := context.WithTimeout(ctx, 3*time.Second)
		_, err := g.Task.Delete(short, &taskv3.DeleteRequest{ID: p.ID()})
		cancel()
		require.Error(t, err)
		require.Contains(t, []codes.Code{codes.FailedPrecondition, codes.DeadlineExceeded}, codeOf(err), err)
		require.Less(t, time.Since(began), 10*time.Second)
		t.Logf("delete of what is stuck: %v, %v", err, time.Since(began).Round(time.Millisecond))
	}
	again := g.stateLatency(ctx, t, quiet, n)

	require.NoError(t, server.Kill(ctx, syscall.SIGTERM)) // takes the file system away
	_, err = g.Task.Wait(ctx, &taskv3.WaitRequest{ID: server.ID()})
	require.NoError(t, err)
	w, err = g.Task.Wait(ctx, &taskv3.WaitRequest{ID: init.ID()})
	require.NoError(t, err)
	require.Equal(t, uint32(137), w.ExitStatus)
	for _, p := range []*Process{init, left} {
		require.NoError(t, p.Delete(ctx), "it is not stuck any more")
		p.Abandon()
	}
	_, err = g.Task.Kill(ctx, &taskv3.KillRequest{ID: full.ID, Signal: 9})
	require.NoError(t, err)
	_, err = g.Task.Wait(ctx, &taskv3.WaitRequest{ID: full.ID})
	require.NoError(t, err)
	_, err = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: full.ID})
	require.NoError(t, err)
	for _, p := range []*Process{reader, writer} {
		g.end(t, p)
	}
	_, err = g.Run(ctx, Privileged("/bin/rm", "-r", "/mnt/full"))
	require.NoError(t, err)
	quietest := g.stateLatency(ctx, t, quiet, n)

	t.Logf("p99 of State: idle %v and %v, with all that is stuck %v and %v", idle, quietest, busy, again)
	require.LessOrEqual(t, min(busy, again), 4*max(idle, quietest))
	g.end(t, quiet)
	g.end(t, server)
	g.Restored(ctx, t, base)
}

// hangs runs args with a file system that never answers at /hang.
func (g *Guest) hangs(ctx context.Context, t *testing.T, args []string, pidns bool) *Process {
	t.Helper()
	spec := Spec(args...)
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/hang", Type: "bind", Source: stuckDir, Options: []string{"bind"}})
	if !pidns {
		spec.Linux.Namespaces = spec.Linux.Namespaces[1:]
	}
	p, err := g.Create(ctx, "c"+NewID(), spec, false)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	return p
}

// stateLatency is the 99th percentile of n calls of State.
func (g *Guest) stateLatency(ctx context.Context, t *testing.T, p *Process, n int) time.Duration {
	t.Helper()
	all := make([]time.Duration, n)
	for i := range all {
		began := time.Now()
		_, err := g.Task.State(ctx, &taskv3.StateRequest{ID: p.ID()})
		require.NoError(t, err)
		all[i] = time.Since(began)
	}
	slices.Sort(all)
	return all[n*99/100]
}
