package cgroup2

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

func TestOpenTreeRefuses(t *testing.T) {
	_, err := OpenTree(t.TempDir(), "x")
	require.ErrorIs(t, err, sys.ErrUnsupported)
	require.ErrorContains(t, err, "mount")

	_, err = OpenTree("/nowhere", "x")
	require.ErrorIs(t, err, unix.ENOENT)

	for _, name := range []string{"", "..", "a/../..", "/"} {
		_, err = OpenTree(mountpoint(t), name)
		require.ErrorIs(t, err, sys.ErrInvalid, "%q", name)
	}
}

func TestCreate(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "/default/c1")
	require.DirExists(t, hostPath(t, c))
	require.Equal(t, tree.path+"/default/c1", c.Path())

	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(c.Dir().Fd()), &st))
	require.Equal(t, uint32(unix.S_IFDIR), st.Mode&unix.S_IFMT)
	flags, err := unix.FcntlInt(c.Dir().Fd(), unix.F_GETFD, 0)
	require.NoError(t, err)
	require.Equal(t, unix.FD_CLOEXEC, flags&unix.FD_CLOEXEC)

	_, err = tree.Create("default/c1")
	require.ErrorIs(t, err, sys.ErrExists)
	_, err = tree.Create("default")
	require.ErrorIs(t, err, sys.ErrExists, "an existing parent is not a container's cgroup")
	_, err = tree.Create("default/c1/inner")
	require.ErrorIs(t, err, sys.ErrInvalid, "a container must not live in another one")
	_, err = tree.Create("cgroup.procs/x")
	require.ErrorIs(t, err, sys.ErrInvalid)
	_, err = tree.Create("../escape")
	require.ErrorIs(t, err, sys.ErrInvalid)
}

func TestControllersReachTheLeaf(t *testing.T) {
	tree := newTree(t)
	have, err := tree.Controllers()
	require.NoError(t, err)
	c := newCgroup(t, tree, "a/b/c")
	leaf, err := c.dir.read("cgroup.controllers")
	require.NoError(t, err)
	for _, name := range have {
		require.Contains(t, string(leaf), name)
	}
}

func TestCreateFailureLeavesNothing(t *testing.T) {
	tree := newTree(t)
	fds := countFDs(t)
	// The third component is one of cgroupfs's own files.
	_, err := tree.Create("p1/p2/cgroup.procs")
	require.Error(t, err)
	_, err = tree.Create("p1/p2/cgroup.procs/x")
	require.Error(t, err)
	require.NoDirExists(t, filepath.Join(mountpoint(t), tree.path, "p1"))
	require.Equal(t, fds, countFDs(t))
}

func TestDeleteRemovesEmptyParents(t *testing.T) {
	tree := newTree(t)
	ctx := timeout(t, 10*time.Second)
	a, err := tree.Create("pod/a")
	require.NoError(t, err)
	b, err := tree.Create("pod/b")
	require.NoError(t, err)
	pod := filepath.Dir(hostPath(t, a))

	require.NoError(t, a.Delete(ctx))
	require.DirExists(t, pod)
	require.NoError(t, a.Delete(ctx), "deleting twice is fine")

	again, err := tree.Create("pod/a")
	require.NoError(t, err)
	require.NoError(t, a.Delete(ctx))
	require.DirExists(t, hostPath(t, again), "a deleted cgroup does not own its path any more")

	require.NoError(t, os.Remove(hostPath(t, b)))
	require.NoError(t, b.Delete(ctx), "removed by someone else is fine")
	require.NoError(t, again.Delete(ctx))
	require.NoDirExists(t, pod)
	for _, c := range []*Cgroup{a, b, again} {
		require.NoError(t, c.Close())
		require.NoError(t, c.Close())
		require.ErrorIs(t, c.Kill(), os.ErrClosed)
	}
}

// Creating and deleting neighbours at once must never find the parent gone.
func TestConcurrentCreateDelete(t *testing.T) {
	tree := newTree(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 40 {
				c, err := tree.Create("pod/" + string(rune('a'+i)))
				if err == nil {
					err = c.Delete(t.Context())
					c.Close()
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	require.NoDirExists(t, filepath.Join(mountpoint(t), tree.path, "pod"))
}
