package cgroup2

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// What limits do to real processes. Most need a machine whose controllers are
// not held by cgroup v1: a guest.

func apply(t *testing.T, c *Cgroup, r *specs.LinuxResources) {
	t.Helper()
	writes, err := Plan(r)
	require.NoError(t, err)
	require.NoError(t, c.Apply(writes))
}

func TestMemoryLimitKills(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "memory")
	c := newCgroup(t, tree, "c")
	apply(t, c, &specs.LinuxResources{Memory: &specs.LinuxMemory{
		Limit: ptr(int64(48 << 20)), Swap: ptr(int64(48 << 20)), Reservation: ptr(int64(8 << 20)),
	}})
	reports := make(chan uint64, 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, c.WatchOOM(ctx, func(kills uint64) { reports <- kills }))
	require.ErrorIs(t, c.WatchOOM(ctx, func(uint64) {}), sys.ErrExists)

	p := start(t, c, "eat 8", "eating")
	_, err := p.out.ReadString('\n')
	require.NoError(t, err)
	s, err := c.Stats()
	require.NoError(t, err)
	require.GreaterOrEqual(t, s.Memory.Usage, uint64(8<<20))
	require.GreaterOrEqual(t, s.Memory.Anon, uint64(8<<20))
	require.Equal(t, uint64(48<<20), s.Memory.UsageLimit)
	require.Equal(t, uint64(8<<20), s.Memory.UsageLow)
	require.Equal(t, uint64(0), s.Memory.SwapLimit)
	require.Equal(t, MemoryEvents{}, *s.MemoryEvents)

	for i := uint64(1); i <= 2; i++ {
		p = start(t, c, "eat 100", "eating")
		_ = p.Wait()
		require.Equal(t, syscall.SIGKILL, p.ProcessState.Sys().(syscall.WaitStatus).Signal())
		kills, err := c.OOMKills()
		require.NoError(t, err)
		require.Equal(t, i, kills, "the count is right by the time the exit is seen")
		select {
		case got := <-reports:
			require.Equal(t, i, got)
		case <-time.After(10 * time.Second):
			t.Fatal("no report of the kill")
		}
	}

	// After the context nothing is reported, and it can be watched anew.
	cancel()
	require.Eventually(t, func() bool {
		err = c.WatchOOM(t.Context(), func(kills uint64) { reports <- kills })
		return err == nil
	}, 10*time.Second, time.Millisecond, "%v", err)
	require.Equal(t, uint64(2), <-reports, "what happened before is reported at once")
}

// A victim in a cgroup the container made itself is the container's too.
func TestOOMBelow(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "memory")
	c := newCgroup(t, tree, "c")
	apply(t, c, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(48 << 20)), Swap: ptr(int64(48 << 20))}})
	reports := make(chan uint64, 10)
	require.NoError(t, c.WatchOOM(t.Context(), func(kills uint64) { reports <- kills }))
	require.NoError(t, c.dir.write("cgroup.subtree_control", "+memory"))
	sub := filepath.Join(hostPath(t, c), "sub")
	require.NoError(t, os.Mkdir(sub, 0o755))
	fd, err := unix.Open(sub, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	inner := &Cgroup{tree: tree, path: c.Path() + "/sub"}
	inner.dir, err = newDir(fd, sub)
	require.NoError(t, err)
	defer inner.Close()
	p := start(t, inner, "eat 100", "eating")
	_ = p.Wait()
	kills, err := c.OOMKills()
	require.NoError(t, err)
	require.Equal(t, uint64(1), kills)
	require.Equal(t, uint64(1), <-reports)
	require.Contains(t, contents(t, c, "memory.events.local"), "oom_kill 0\n")
}

// One inotify instance serves all cgroups, and deleting one ends its watch.
func TestWatchOOMManyAndDelete(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "memory")
	fds, threads := countFDs(t), runtime.NumGoroutine()
	for i := range 20 {
		c, err := tree.Create(strconv.Itoa(i))
		require.NoError(t, err)
		require.NoError(t, c.WatchOOM(context.Background(), func(uint64) { t.Error("a report about nothing") }))
		defer func() {
			require.NoError(t, c.Delete(t.Context()))
			require.NoError(t, c.Close())
			if i == 0 {
				require.Equal(t, fds+1, countFDs(t))
				require.LessOrEqual(t, runtime.NumGoroutine(), threads+1)
				require.Empty(t, tree.oom.watches)
			}
		}()
	}
	require.Equal(t, fds+20+1, countFDs(t))
}

func TestWithoutMemoryController(t *testing.T) {
	tree := newTree(t)
	_ = tree.dir.write("cgroup.subtree_control", "-memory")
	c := newCgroup(t, tree, "c")
	require.ErrorIs(t, c.WatchOOM(t.Context(), func(uint64) {}), sys.ErrUnsupported)
	_, err := c.OOMKills()
	require.ErrorIs(t, err, sys.ErrUnsupported)
	writes, err := Plan(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 20))}})
	require.NoError(t, err)
	err = c.Apply(writes)
	require.ErrorIs(t, err, sys.ErrUnsupported)
	require.ErrorContains(t, err, "the controller memory is not available")
}

func TestMemoryCheckBeforeUpdate(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "memory")
	c := newCgroup(t, tree, "c")
	p := start(t, c, "eat 16", "eating")
	_, err := p.out.ReadString('\n')
	require.NoError(t, err)
	r := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20)), CheckBeforeUpdate: ptr(true)},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(2))},
	}
	writes, err := Plan(r)
	require.NoError(t, err)
	err = c.Update(writes)
	require.ErrorIs(t, err, sys.ErrInvalid)
	require.ErrorContains(t, err, "checkBeforeUpdate")
	require.Equal(t, "max\n", contents(t, c, "memory.max"))
	require.Equal(t, "100\n", contents(t, c, "cpu.weight"), "nothing of a refused plan is written")

	r.Memory.Limit = ptr(int64(64 << 20))
	apply(t, c, r)
	require.Equal(t, strconv.Itoa(64<<20)+"\n", contents(t, c, "memory.max"))
}

func TestPidsLimit(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "pids")
	c := newCgroup(t, tree, "c")
	apply(t, c, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(30))}})
	p := start(t, c, "try 50", "")
	line, err := p.out.ReadString('\n')
	require.NoError(t, err)
	made, err := strconv.Atoi(strings.TrimSpace(line))
	require.NoError(t, err)
	require.Greater(t, made, 0)
	require.Less(t, made, 30)
	s, err := c.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(30), s.Pids.Limit)
	require.LessOrEqual(t, s.Pids.Current, uint64(30))
	require.Greater(t, s.Pids.Failures, uint64(0))

	apply(t, c, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}})
	require.Equal(t, "max\n", contents(t, c, "pids.max"))
}

func TestCPUQuotaThrottles(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "cpu")
	c := newCgroup(t, tree, "c")
	apply(t, c, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(10000)), Period: ptr(uint64(100000)), Shares: ptr(uint64(512))}})
	require.Equal(t, "59\n", contents(t, c, "cpu.weight"))
	start(t, c, "spin", "ready")
	time.Sleep(time.Second)
	s, err := c.Stats()
	require.NoError(t, err)
	require.Greater(t, s.CPU.NrThrottled, uint64(2))
	require.Greater(t, s.CPU.Throttled, uint64(100_000))
	require.Less(t, s.CPU.Usage, uint64(600_000), "a tenth of a processor, and what starting took")
	require.NotNil(t, s.CPU.PSI)
}

// Quota and burst constrain each other; updates must succeed in whatever
// direction both go.
func TestCPUBurstOrder(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "cpu")
	c := newCgroup(t, tree, "c")
	for _, step := range []struct{ quota, burst int64 }{{50000, 20000}, {100000, 90000}, {10000, 10000}, {5000, 0}, {60000, 60000}, {-1, 0}} {
		apply(t, c, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &step.quota, Burst: ptr(uint64(step.burst))}})
		want := fmt.Sprintf("%d 100000\n", step.quota)
		if step.quota < 0 {
			want = "max 100000\n"
		}
		require.Equal(t, want, contents(t, c, "cpu.max"))
		require.Equal(t, fmt.Sprintf("%d\n", step.burst), contents(t, c, "cpu.max.burst"))
	}
	writes, err := Plan(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(10000)), Burst: ptr(uint64(20000))}})
	require.NoError(t, err)
	err = c.Update(writes)
	require.ErrorIs(t, err, sys.ErrInvalid)
	require.ErrorContains(t, err, "cpu.max.burst")
	require.Equal(t, "max 100000\n", contents(t, c, "cpu.max"), "a failed update is undone")
}

func TestCPUIdle(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "cpu")
	c := newCgroup(t, tree, "c")
	apply(t, c, &specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1)), Shares: ptr(uint64(512))}})
	require.Equal(t, "1\n", contents(t, c, "cpu.idle"))
	apply(t, c, &specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(0)), Shares: ptr(uint64(512))}})
	require.Equal(t, "0\n", contents(t, c, "cpu.idle"))
	require.Equal(t, "59\n", contents(t, c, "cpu.weight"))
}

func TestCpuset(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "cpuset")
	c := newCgroup(t, tree, "c")
	apply(t, c, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0"}})
	p := start(t, c, "wait", "ready")
	var set unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(p.Process.Pid, &set))
	require.Equal(t, 1, set.Count())
	require.True(t, set.IsSet(0))

	require.NoError(t, c.Kill())
	_ = p.Wait() // a cpuset with processes cannot be cleared
	apply(t, c, &specs.LinuxResources{Unified: map[string]string{"cpuset.cpus": ""}})
	require.Equal(t, "\n", contents(t, c, "cpuset.cpus"))

	writes, err := Plan(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "none"}})
	require.NoError(t, err)
	require.ErrorIs(t, c.Apply(writes), sys.ErrInvalid)
}

func TestUnified(t *testing.T) {
	tree := newTree(t)
	requireController(t, tree, "memory")
	c := newCgroup(t, tree, "c")
	apply(t, c, &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(32 << 20))},
		Unified: map[string]string{"memory.max": "16M", "memory.high": "12M", "memory.oom.group": "1"},
	})
	require.Equal(t, strconv.Itoa(16<<20)+"\n", contents(t, c, "memory.max"))
	require.Equal(t, strconv.Itoa(12<<20)+"\n", contents(t, c, "memory.high"))
	require.Equal(t, "1\n", contents(t, c, "memory.oom.group"))
}

func TestStatsOfAllControllers(t *testing.T) {
	tree := newTree(t)
	for _, name := range []string{"cpu", "memory", "pids", "io", "hugetlb", "rdma", "misc"} {
		requireController(t, tree, name)
	}
	c := newCgroup(t, tree, "c")
	start(t, c, "wait", "ready")
	s, err := c.Stats()
	require.NoError(t, err)
	require.NotNil(t, s.Pids)
	require.NotZero(t, s.Pids.Current)
	require.NotNil(t, s.CPU)
	require.NotZero(t, s.CPU.Usage)
	require.NotNil(t, s.Memory)
	require.NotZero(t, s.Memory.Usage)
	require.NotNil(t, s.MemoryEvents)
	require.NotNil(t, s.IO)
	require.NotNil(t, s.RDMA)
	require.NotEmpty(t, s.HugeTLB)
	for _, psi := range []*Pressure{s.CPU.PSI, s.Memory.PSI, s.IO.PSI} {
		require.NotNil(t, psi)
	}
}
