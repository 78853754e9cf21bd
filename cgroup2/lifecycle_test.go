package cgroup2

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestProcsAndPopulated(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	populated, err := c.Populated()
	require.NoError(t, err)
	require.False(t, populated)
	pids, err := c.Procs()
	require.NoError(t, err)
	require.Empty(t, pids)

	p := start(t, c, "fork 3", "ready")
	populated, err = c.Populated()
	require.NoError(t, err)
	require.True(t, populated)
	pids, err = c.Procs()
	require.NoError(t, err)
	require.Len(t, pids, 4)
	require.Contains(t, pids, p.Process.Pid)
	require.True(t, slices.IsSorted(pids))

	// A process in a cgroup below is the container's too.
	sub := filepath.Join(hostPath(t, c), "sub", "sub")
	require.NoError(t, os.MkdirAll(sub, 0o755))
	p = start(t, c, "wait", "ready")
	require.NoError(t, os.WriteFile(filepath.Join(sub, "cgroup.procs"), []byte(strconv.Itoa(p.Process.Pid)), 0))
	pids, err = c.Procs()
	require.NoError(t, err)
	require.Len(t, pids, 5)
	require.Contains(t, pids, p.Process.Pid)
	require.NoError(t, c.Add(p.Process.Pid))
	data, err := c.dir.read("cgroup.procs")
	require.NoError(t, err)
	require.Contains(t, string(data), strconv.Itoa(p.Process.Pid), "moved back up")
}

func TestProcsOfThreadedCgroups(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	sub := filepath.Join(hostPath(t, c), "threads")
	require.NoError(t, os.Mkdir(sub, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(sub, "cgroup.type"), []byte("threaded"), 0))
	p := start(t, c, "threads "+hostPath(t, c)+" "+sub, "ready")
	pids, err := c.Procs()
	require.NoError(t, err)
	require.Equal(t, []int{p.Process.Pid}, pids)

	// Looked at on its own, the threaded cgroup leads to its process as well.
	fd, err := c.dir.open("threads", unix.O_RDONLY|unix.O_DIRECTORY)
	require.NoError(t, err)
	defer unix.Close(fd)
	_, err = readAt(fd, "cgroup.procs")
	require.ErrorIs(t, err, unix.EOPNOTSUPP)
	pids, err = procsAt(fd)
	require.NoError(t, err)
	require.Equal(t, []int{p.Process.Pid}, pids)
}

func TestFreeze(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	p := start(t, c, "tick", "tick")
	lines := make(chan struct{}, 1000)
	go func() {
		for {
			if _, err := p.out.ReadString('\n'); err != nil {
				return
			}
			lines <- struct{}{}
		}
	}()
	<-lines
	require.NoError(t, c.Freeze(timeout(t, 10*time.Second)))
	require.NoError(t, c.Freeze(timeout(t, 10*time.Second)), "freezing twice is fine")
	time.Sleep(20 * time.Millisecond) // let the reader catch up
	for len(lines) > 0 {
		<-lines
	}
	time.Sleep(100 * time.Millisecond)
	require.Empty(t, lines, "a frozen process was running")

	require.NoError(t, c.Thaw(timeout(t, 10*time.Second)))
	select {
	case <-lines:
	case <-time.After(10 * time.Second):
		t.Fatal("a thawed process does not run")
	}
}

func TestFreezeEmptyAndCancelled(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	ctx := timeout(t, 10*time.Second)
	require.NoError(t, c.Freeze(ctx))
	done, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, c.Freeze(done), context.Canceled)
	data, err := c.dir.read("cgroup.freeze")
	require.NoError(t, err)
	require.Equal(t, "1\n", string(data), "a refused freeze must not thaw what was frozen")
	require.NoError(t, c.Thaw(ctx))
}

// A cgroup cannot thaw while the one above it is frozen: the wait must end
// with the context.
func TestThawTimesOut(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	start(t, c, "wait", "ready")
	require.NoError(t, tree.dir.write("cgroup.freeze", "1"))
	require.NoError(t, c.waitEvents(timeout(t, 10*time.Second), func(ev events) bool { return ev.frozen }))
	begin := time.Now()
	err := c.Thaw(timeout(t, 50*time.Millisecond))
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, c.Path())
	require.Less(t, time.Since(begin), 5*time.Second)
	require.NoError(t, tree.dir.write("cgroup.freeze", "0"))
}

func TestKill(t *testing.T) {
	for _, tt := range []struct {
		name string
		kill func(*Cgroup) error
	}{{"cgroup.kill", (*Cgroup).Kill}, {"fallback", (*Cgroup).killEach}} {
		for _, frozen := range []bool{false, true} {
			name := tt.name
			if frozen {
				name += " frozen"
			}
			t.Run(name, func(t *testing.T) {
				c := newCgroup(t, newTree(t), "c")
				p := start(t, c, "fork 3", "ready")
				ctx := timeout(t, 10*time.Second)
				if frozen {
					require.NoError(t, c.Freeze(ctx))
				}
				require.NoError(t, tt.kill(c))
				_ = p.Wait()
				require.Equal(t, syscall.SIGKILL, p.ProcessState.Sys().(syscall.WaitStatus).Signal())
				require.NoError(t, c.waitEvents(ctx, func(ev events) bool { return !ev.populated }))
			})
		}
	}
}

func TestKillForkBomb(t *testing.T) {
	for _, tt := range []struct {
		name string
		kill func(*Cgroup) error
	}{{"cgroup.kill", (*Cgroup).Kill}, {"fallback", (*Cgroup).killEach}} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCgroup(t, newTree(t), "c")
			start(t, c, "bomb", "ready")
			time.Sleep(100 * time.Millisecond)
			require.NoError(t, tt.kill(c))
			require.NoError(t, c.waitEvents(timeout(t, 10*time.Second), func(ev events) bool { return !ev.populated }))
		})
	}
}

func TestKillGone(t *testing.T) {
	tree := newTree(t)
	c, err := tree.Create("c")
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.Delete(t.Context()))
	require.NoError(t, c.Kill())
	populated, err := c.Populated()
	require.NoError(t, err)
	require.False(t, populated)
	pids, err := c.Procs()
	require.NoError(t, err)
	require.Empty(t, pids)
}

func TestLifeCycleLeaksNothing(t *testing.T) {
	tree := newTree(t)
	ctx := timeout(t, 30*time.Second)
	round := func() {
		c, err := tree.Create("pod/c")
		require.NoError(t, err)
		require.NoError(t, c.Freeze(ctx))
		require.NoError(t, c.Thaw(ctx))
		_, err = c.Procs()
		require.NoError(t, err)
		require.NoError(t, c.Kill())
		require.NoError(t, c.Delete(ctx))
		require.NoError(t, c.Close())
	}
	round()
	before := countFDs(t)
	for range 50 {
		round()
	}
	require.Equal(t, before, countFDs(t))
}

func BenchmarkCreateDelete(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	mount := "/sys/fs/cgroup"
	if _, err := os.Stat(mount + "/unified"); err == nil {
		mount += "/unified"
	}
	tree, err := OpenTree(mount, "vminit-bench-cgroup2")
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Rmdir(filepath.Join(mount, "vminit-bench-cgroup2"))
	defer tree.Close()
	for b.Loop() {
		c, err := tree.Create("c")
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Delete(context.Background()); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
