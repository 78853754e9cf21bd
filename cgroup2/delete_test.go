package cgroup2

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

func TestDeleteBusy(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	start(t, c, "fork 2", "ready")
	begin := time.Now()
	err := c.Delete(timeout(t, 100*time.Millisecond))
	require.Less(t, time.Since(begin), 5*time.Second)
	require.ErrorIs(t, err, unix.EBUSY)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, sys.ErrState)
	require.ErrorContains(t, err, c.Path())
	pids, perr := c.Procs()
	require.NoError(t, perr)
	require.Len(t, pids, 3, "Delete kills nothing")
	for _, pid := range pids {
		require.ErrorContains(t, err, fmt.Sprintf("%d (exe)", pid))
	}

	// It waits for a kill that comes later.
	time.AfterFunc(50*time.Millisecond, func() { _ = c.Kill() })
	require.NoError(t, c.Delete(timeout(t, 10*time.Second)))
	require.NoDirExists(t, hostPath(t, c))
}

// What a container that owns its subtree may leave: nested, threaded and
// self-frozen cgroups with processes in them.
func TestDeleteHostileSubtree(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	top := hostPath(t, c)
	for _, dir := range []string{"domain/threads", "frozen/deeper", "wide/1", "wide/2", "wide/3"} {
		require.NoError(t, os.MkdirAll(filepath.Join(top, dir), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(top, "domain/threads/cgroup.type"), []byte("threaded"), 0))
	start(t, c, "threads "+filepath.Join(top, "domain")+" "+filepath.Join(top, "domain/threads"), "ready")
	p := start(t, c, "wait", "ready")
	err := os.WriteFile(filepath.Join(top, "frozen", "deeper", "cgroup.procs"), []byte(strconv.Itoa(p.Process.Pid)), 0)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(top, "frozen", "cgroup.freeze"), []byte("1"), 0))

	require.ErrorIs(t, c.Delete(timeout(t, 50*time.Millisecond)), unix.EBUSY)
	require.NoError(t, c.Kill())
	require.NoError(t, c.Delete(timeout(t, 10*time.Second)))
	require.NoDirExists(t, top)
}

// Nesting is limited only by the kernel; the walk must not run out of
// descriptors or stack.
func TestDeleteDeep(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	const depth = 300
	fd, err := unix.Dup(int(c.Dir().Fd()))
	require.NoError(t, err)
	for range depth {
		require.NoError(t, unix.Mkdirat(fd, "d", 0o755))
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		require.NoError(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)

	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	low := limit
	low.Cur = uint64(countFDs(t) + 16)
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	pids, err := c.Procs()
	require.NoError(t, err)
	require.Empty(t, pids)
	require.NoError(t, c.Delete(timeout(t, 20*time.Second)))
}
