package vmtest

import (
	"encoding/json"
	"errors"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
)

// What the host asks for is what the container reads of its own cgroup.
func TestLimits(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	spec := Spec()
	spec.Linux.Resources = &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Reservation: ptr(int64(32 << 20)), Swap: ptr(int64(80 << 20))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(50))},
		CPU:    &specs.LinuxCPU{Quota: ptr(int64(30000)), Period: ptr(uint64(100000)), Shares: ptr(uint64(2048)), Cpus: "1"},
	}
	files := g.Look(ctx, t, spec).Cgroup.Files
	for file, want := range map[string]string{
		"memory.max": "67108864", "memory.low": "33554432", "memory.swap.max": "16777216", "pids.max": "50",
		"cpu.max": "30000 100000", "cpuset.cpus": "1", "cpuset.cpus.effective": "1",
	} {
		if _, ok := files[file]; !ok && file == "memory.swap.max" {
			continue // a kernel without swap accounting
		}
		require.Equal(t, want, files[file], file)
	}
	require.NotEqual(t, "100", files["cpu.weight"])

	spec = Spec("/bin/probe", "sleep")
	c := g.Running(ctx, t, spec)
	data := marshal(t, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(33))}, Memory: &specs.LinuxMemory{Limit: ptr(int64(99 << 20))}})
	_, err := g.Task.Update(ctx, &taskv3.UpdateTaskRequest{ID: c.ID(), Resources: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: data}})
	require.NoError(t, err)
	files = g.LookInside(ctx, t, c.ID(), spec.Process).Cgroup.Files
	require.Equal(t, "33", files["pids.max"])
	require.Equal(t, "103809024", files["memory.max"])
}

// A fork bomb ends at the limit, and the daemon answers beside it.
func TestForkBomb(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	spec := Spec("/bin/probe", "forkbomb", "1000")
	spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(40))}}
	r, err := g.Run(ctx, spec)
	require.NoError(t, err)
	var bomb struct {
		Started int
		Errno   string
	}
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &bomb))
	require.Equal(t, "EAGAIN", bomb.Errno)
	require.Greater(t, bomb.Started, 10)
	require.Less(t, bomb.Started, 40)
}

// The kernel kills what takes too much; the host learns of it before it learns
// of the exit.
func TestOOM(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	events := g.observe(ctx, t)
	spec := Spec("/bin/probe", "eatmem", "100M")
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20))}}
	p, err := g.Create(ctx, "c"+NewID(), spec, false)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	r, err := p.Finish(ctx)
	require.NoError(t, err)
	require.Equal(t, uint32(137), r.Code, r.Stderr)
	require.Equal(t, []string{"create", "start", "oom", "exit " + p.ID() + " 137", "delete"}, events.of(t, p.ID(), "delete"))
}

// Two moments of a container that is paused in between show no progress.
func TestPause(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/sh", "-c", "while :; do echo; usleep 10000; done"), false)
	require.NoError(t, err)
	t.Cleanup(func() { g.end(t, p) })
	out := p.Stdout()
	require.NoError(t, p.Start(ctx))
	buf := make([]byte, 4096)
	_, err = out.Read(buf)
	require.NoError(t, err)
	_, err = g.Task.Pause(ctx, &taskv3.PauseRequest{ID: p.ID()})
	require.NoError(t, err)
	// Whatever was under way arrives, then nothing more.
	require.Eventually(t, func() bool {
		require.NoError(t, out.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		n, err := out.Read(buf)
		return n == 0 && isTimeout(err)
	}, 30*time.Second, time.Millisecond)
	require.NoError(t, out.SetReadDeadline(time.Time{}))
	_, err = g.Task.Resume(ctx, &taskv3.ResumeRequest{ID: p.ID()})
	require.NoError(t, err)
	_, err = out.Read(buf)
	require.NoError(t, err)
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
