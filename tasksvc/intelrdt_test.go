package tasksvc

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

// fakeResctrl is a directory that, as resctrl, fills what is made in it.
func fakeResctrl(t *testing.T) resctrl {
	fill := func(dir string) error {
		for _, f := range []string{"schemata", "tasks"} {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
				return err
			}
		}
		return os.Mkdir(filepath.Join(dir, "mon_groups"), 0o755)
	}
	r := resctrl{root: t.TempDir()}
	r.mkdir = func(dir string) error {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		return fill(dir)
	}
	require.NoError(t, fill(r.root))
	return r
}

func TestIntelRdt(t *testing.T) {
	r := fakeResctrl(t)
	text := func(path string) string {
		data, err := os.ReadFile(filepath.Join(r.root, path))
		require.NoError(t, err)
		return string(data)
	}
	// A group of its own: made, written in the spec's order, monitored.
	g, err := r.group("c1", &specs.LinuxIntelRdt{L3CacheSchema: "L3:0=f", MemBwSchema: "MB:0=20", Schemata: []string{"L2:0=1"}, EnableMonitoring: true})
	require.NoError(t, err)
	require.Equal(t, "L3:0=f\nMB:0=20\nL2:0=1\n", text("c1/schemata"))
	require.Equal(t, []string{r.root + "/c1/tasks", r.root + "/c1/mon_groups/c1/tasks"}, g.taskFiles())
	require.Equal(t, []string{r.root + "/c1/mon_groups/c1", r.root + "/c1"}, g.remove)
	_, err = r.group("c1", &specs.LinuxIntelRdt{})
	require.ErrorIs(t, err, sys.ErrExists)

	// A named one is made once, stays, and must fit whoever comes later.
	g, err = r.group("c2", &specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=7f0;1=1f"})
	require.NoError(t, err)
	require.Empty(t, g.remove)
	require.NoError(t, os.WriteFile(r.root+"/gold/schemata", []byte("    MB:0=100;1=100\n    L3:0=07F0;1=001f\n"), 0o644))
	for _, ok := range []*specs.LinuxIntelRdt{{ClosID: "gold"}, {ClosID: "gold", L3CacheSchema: "L3:0=7f0"}, {ClosID: "gold", Schemata: []string{"MB:1=100"}}, {ClosID: "/"}} {
		g, err := r.group("c3", ok)
		require.NoError(t, err)
		require.Empty(t, g.remove)
	}
	_, err = r.group("c3", &specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=ff"})
	require.ErrorIs(t, err, sys.ErrState)
	require.ErrorContains(t, err, "has L3:0=7f0, not ff")
	_, err = r.group("c3", &specs.LinuxIntelRdt{ClosID: "silver"})
	require.ErrorIs(t, err, sys.ErrNotFound)

	// Only the monitoring group is the container's own here.
	g, err = r.group("c4", &specs.LinuxIntelRdt{ClosID: "gold", EnableMonitoring: true})
	require.NoError(t, err)
	require.Equal(t, []string{r.root + "/gold/mon_groups/c4"}, g.remove)

	for _, bad := range []specs.LinuxIntelRdt{
		{ClosID: ".."}, {ClosID: "a/b"}, {ClosID: "info"}, {MemBwSchema: "0=1"}, {L3CacheSchema: "L3:0=1\nMB:0=1"}, {Schemata: []string{""}},
	} {
		_, err := r.group("c5", &bad)
		require.ErrorIs(t, err, sys.ErrInvalid, "%+v", bad)
	}
	// What fails half-way leaves nothing.
	empty := resctrl{root: t.TempDir(), mkdir: func(dir string) error { return os.Mkdir(dir, 0o755) }}
	_, err = empty.group("c6", &specs.LinuxIntelRdt{L3CacheSchema: "L3:0=1"})
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoDirExists(t, empty.root+"/c6")
}

func TestIntelRdtRelease(t *testing.T) {
	dir := t.TempDir()
	g := &rdtGroup{remove: []string{dir + "/a/b", dir + "/a"}}
	require.NoError(t, os.MkdirAll(dir+"/a/b", 0o755))
	require.NoError(t, g.release())
	require.NoDirExists(t, dir+"/a")
	require.NoError(t, g.release())
	require.NoError(t, (*rdtGroup)(nil).release())
}

// Processes are put into the group by their pid.
func TestIntelRdtTasks(t *testing.T) {
	h := newHost(t)
	s := probeSpec()
	s.Process.Args = []string{"/bin/sleep", "1000"}
	h.running("c", s)
	c, err := h.find("default", "c")
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "tasks")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	require.NoError(t, (&outside{tasks: []string{file}}).apply(c.init.handle))
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(c.init.handle.PID())+"\n", string(data))
}

// TestIntelRdtWithoutResctrl: where there is none, which is everywhere we run.
func TestIntelRdtWithoutResctrl(t *testing.T) {
	h := newHost(t)
	s := probeSpec()
	s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "gold"}
	err := h.refused(s, "linux.intelRdt: no resctrl file system is mounted in the guest")
	require.ErrorIs(t, err, sys.ErrUnsupported)
}
