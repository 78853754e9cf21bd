package vmtest

import (
	"context"
	"syscall"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
)

// sh runs a script as an exec in a container and returns what it prints.
func (g *Guest) sh(ctx context.Context, t *testing.T, id, script string) string {
	t.Helper()
	p, err := g.Exec(ctx, id, &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"},
		Capabilities: Spec().Process.Capabilities}, false)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	r, err := p.Finish(ctx)
	require.NoError(t, err)
	require.Zero(t, r.Code, "%s: %s%s", script, r.Stdout, r.Stderr)
	return r.Stdout
}

func (g *Guest) stats(ctx context.Context, t *testing.T, id string) *stats.Metrics {
	t.Helper()
	r, err := g.Task.Stats(ctx, &taskv3.StatsRequest{ID: id})
	require.NoError(t, err)
	m := new(stats.Metrics)
	require.NoError(t, proto.Unmarshal(r.Stats.Value, m))
	return m
}

func TestStatsAreAlive(t *testing.T) {
	g, ctx := Shared(t), Context(t)
	spec := Spec("/bin/sleep", "1000")
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/vda", Type: "b", Major: 254, Minor: 0}}
	spec.Linux.Resources = &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(128 << 20))},
		Pids:    &specs.LinuxPids{Limit: ptr(int64(77))},
		Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "b", Access: "r"}},
	}
	id := g.Running(ctx, t, spec).ID()
	before := g.stats(ctx, t, id)
	require.EqualValues(t, 77, before.Pids.Limit)
	require.EqualValues(t, 1, before.Pids.Current)
	require.EqualValues(t, 128<<20, before.Memory.UsageLimit)
	g.sh(ctx, t, id, "probe spin 300ms; dd if=/dev/vda of=/dev/null bs=64k count=64 iflag=direct; ping -c 2 127.0.0.1; dd if=/dev/zero of=/dev/shm/f bs=1M count=20")
	after := g.stats(ctx, t, id)
	require.Greater(t, after.CPU.UsageUsec, before.CPU.UsageUsec+100_000)
	require.Greater(t, after.CPU.UserUsec, before.CPU.UserUsec)
	require.GreaterOrEqual(t, after.Memory.Shmem, uint64(20<<20))
	require.Greater(t, after.Memory.Usage, before.Memory.Usage+16<<20)
	require.Greater(t, after.Memory.Pgfault, before.Memory.Pgfault)
	require.NotNil(t, after.MemoryEvents)
	require.Len(t, after.Network, 1)
	require.Greater(t, after.Network[0].RxBytes, uint64(100))
	var read uint64
	for _, e := range after.Io.Usage {
		read += e.Rbytes
	}
	require.GreaterOrEqual(t, read, uint64(64*64<<10))
	for name, psi := range map[string]*stats.PSIStats{"cpu": after.CPU.PSI, "memory": after.Memory.PSI, "io": after.Io.PSI} {
		require.NotNil(t, psi, name)
	}
	require.NotZero(t, after.CPU.PSI.Some.Total+after.Io.PSI.Some.Total, "pressure of something")
}

// TestOOMLive: the event of a kill that the container survives comes at once.
func TestOOMLive(t *testing.T) {
	g, ctx := Shared(t), Context(t)
	o := g.observe(ctx, t)
	limited := func(args ...string) *specs.Spec {
		s := Spec(args...)
		s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(32 << 20))}}
		return s
	}
	// Populated by the kernel: else it takes the pages of the probe's code and reads
	// them again, for up to a minute, before it gives up and kills.
	p := g.Running(ctx, t, limited("/bin/sh", "-c", "probe eatmem -populate 100M; sleep 1000"))
	t.Cleanup(func() {
		if t.Failed() { // was there no kill, or no event?
			t.Logf("memory: %v", g.stats(context.Background(), t, p.ID()))
		}
	})
	require.Equal(t, []string{"create", "start", "oom"}, o.of(t, p.ID(), "oom"))
	st, err := g.Task.State(ctx, &taskv3.StateRequest{ID: p.ID()})
	require.NoError(t, err)
	require.Equal(t, tasktypes.Status_RUNNING, st.Status)
	require.EqualValues(t, 1, g.stats(ctx, t, p.ID()).MemoryEvents.OomKill)
	require.NoError(t, p.Kill(ctx, syscall.SIGKILL))
	require.Equal(t, []string{"create", "start", "oom", "exit " + p.ID() + " 137"}, o.of(t, p.ID(), "exit "+p.ID()+" 137"))
}
