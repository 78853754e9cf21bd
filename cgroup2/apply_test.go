package cgroup2

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// What can be tested without any controller: the files of cgroup core.

func contents(t *testing.T, c *Cgroup, file string) string {
	t.Helper()
	data, err := c.dir.read(file)
	require.NoError(t, err)
	return string(data)
}

func TestApplyCore(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	require.NoError(t, c.Apply(nil))
	require.NoError(t, c.Apply([]Write{
		{File: "cgroup.max.depth", Value: "3"},
		{File: "cgroup.nothing", Value: "1", Optional: true},
		{File: "cgroup.nothing", Value: "1", Else: &Write{File: "cgroup.max.descendants", Value: "7"}},
	}))
	require.Equal(t, "3\n", contents(t, c, "cgroup.max.depth"))
	require.Equal(t, "7\n", contents(t, c, "cgroup.max.descendants"))

	err := c.Apply([]Write{{File: "cgroup.max.depth", Value: "many"}})
	require.ErrorIs(t, err, sys.ErrInvalid)
	require.ErrorIs(t, err, unix.EINVAL)
	require.EqualError(t, err, `write "many" to cgroup.max.depth of cgroup `+c.Path()+`: invalid argument`)

	err = c.Apply([]Write{{File: "nonesuch.max", Value: "1"}})
	require.ErrorIs(t, err, sys.ErrUnsupported)
	require.ErrorIs(t, err, unix.ENOENT)
	require.ErrorContains(t, err, "the controller nonesuch is not available")

	err = c.Apply([]Write{{File: "cgroup.nonesuch", Value: "1"}})
	require.ErrorIs(t, err, sys.ErrUnsupported)
	require.ErrorContains(t, err, "no such file")

	err = c.Apply([]Write{{File: "../cgroup.max.depth", Value: "1"}})
	require.Error(t, err, "whatever a plan holds, it stays below the cgroup")
}

func TestUpdateUndoes(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	require.NoError(t, c.Update([]Write{{File: "cgroup.max.depth", Value: "3"}}))
	err := c.Update([]Write{
		{File: "cgroup.max.depth", Value: "4"},
		{File: "cgroup.max.descendants", Value: "5"},
		{File: "nonesuch.max", Value: "1"},
	})
	require.ErrorIs(t, err, sys.ErrUnsupported)
	require.Equal(t, "3\n", contents(t, c, "cgroup.max.depth"))
	require.Equal(t, "max\n", contents(t, c, "cgroup.max.descendants"))
}

func TestOldValue(t *testing.T) {
	for _, tt := range []struct {
		w    Write
		old  string
		want string
	}{
		{Write{File: "memory.max", Value: "1"}, "max\n", "max"},
		{Write{File: "cpu.max", Value: "5000"}, "max 100000\n", "max 100000"},
		{Write{File: "cpuset.cpus", Value: "0"}, "\n", "\n"},
		{Write{File: "io.max", Value: "8:0 rbps=1"}, "8:16 rbps=9 wbps=max\n8:0 rbps=5 wbps=max\n", "8:0 rbps=5 wbps=max"},
		{Write{File: "io.max", Value: "8:0 rbps=1"}, "", "8:0 rbps=max wbps=max riops=max wiops=max"},
		{Write{File: "io.weight", Value: "default 5"}, "default 100\n8:0 7\n", "default 100"},
		{Write{File: "io.weight", Value: "8:16 5"}, "default 100\n8:0 7\n", "8:16 default"},
		{Write{File: "rdma.max", Value: "a hca_handle=1"}, "", "a hca_handle=max hca_object=max"},
		{Write{File: "misc.max", Value: "sev 1"}, "sev 100\n", "sev 100"},
	} {
		require.Equal(t, tt.want, oldValue(tt.w, []byte(tt.old)), "%v", tt.w)
	}
}

func TestDelegate(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	require.NoError(t, c.Delegate(4711, 4712))
	owner := func(name string) [2]uint32 {
		var st unix.Stat_t
		require.NoError(t, unix.Stat(filepath.Join(hostPath(t, c), name), &st))
		return [2]uint32{st.Uid, st.Gid}
	}
	for _, name := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		require.Equal(t, [2]uint32{4711, 4712}, owner(name), name)
	}
	for _, name := range []string{"cgroup.freeze", "cgroup.kill", "cgroup.max.depth"} {
		require.Equal(t, [2]uint32{0, 0}, owner(name), name)
	}
	// The new owner can make cgroups, and they are removed with the rest.
	require.NoError(t, os.Mkdir(filepath.Join(hostPath(t, c), "inner"), 0o755))
}
