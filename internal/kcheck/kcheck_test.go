package kcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

// TestTable: the table is whole, and large enough.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range Features() {
		require.False(t, seen[f.Name], "%s twice", f.Name)
		seen[f.Name] = true
		require.Regexp(t, `^\d+\.\d+(\.\d+)?$`, f.Since, f.Name)
		require.NotEmpty(t, f.Loses, f.Name)
		require.NotNil(t, f.probe, f.Name)
		require.Contains(t, []Need{Required, Used, Optional}, f.Need, f.Name)
	}
	require.GreaterOrEqual(t, len(seen), 45)
	t.Logf("%d features", len(seen))
}

// TestRun probes this kernel, whoever we are: it takes no time, leaves nothing
// behind, and what is required is there or could not be tried.
func TestRun(t *testing.T) {
	l, err := nsexec.NewLauncher()
	require.NoError(t, err)
	_, err = Run(l) // once, for what the Go runtime opens and keeps
	require.NoError(t, err)
	before := look(t)
	began := time.Now()
	rows, err := Run(l)
	require.NoError(t, err)
	require.Less(t, time.Since(began), 30*time.Second)
	require.Len(t, rows, len(Features()))
	for _, r := range rows {
		t.Logf("%-36s %-7s %-9s %-11s %-10s %s", r.Name, r.Since, r.Need, r.Status, r.Errno, r.Note)
		if r.Status != Works {
			require.NotEmpty(t, r.Errno+r.Note, r.Name)
		}
		if r.Need == Required && r.Name != "vsock" {
			require.NotEqual(t, Missing, r.Status, r.Name)
			if os.Getuid() == 0 && r.Name != "cgroup2" {
				require.Contains(t, []Status{Works}, r.Status, r.Name)
			}
		}
	}
	require.Equal(t, before, look(t))
}

// state is what a probe could leave behind.
type state struct {
	fds      int
	mounts   string
	modules  []string
	cgroups  []string
	scratch  []string
	children error // of waiting for any
	keyring  int
}

func look(t *testing.T) state {
	var s state
	open, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	s.fds = len(open)
	b, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	s.mounts = string(b)
	b, err = os.ReadFile("/proc/modules")
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(t, err)
	}
	for line := range strings.Lines(string(b)) {
		s.modules = append(s.modules, strings.Fields(line)[0])
	}
	s.cgroups, _ = filepath.Glob(fmt.Sprintf("/sys/fs/cgroup*/*vminit-check-%d*", os.Getpid()))
	unified, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/unified/vminit-check-%d*", os.Getpid()))
	s.cgroups = append(s.cgroups, unified...)
	s.scratch, _ = filepath.Glob(filepath.Join(os.TempDir(), "vminit-check-*"))
	_, s.children = unix.Wait4(-1, nil, unix.WNOHANG, nil)
	s.keyring, _ = unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	return s
}

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err    error
		status Status
		errno  string
	}{
		{nil, Works, ""},
		{unix.ENOSYS, Missing, "ENOSYS"},
		{fmt.Errorf("here: %w", unix.EINVAL), Missing, "EINVAL"},
		{unix.EPERM, Denied, "EPERM"},
		{&fs.PathError{Op: "open", Path: "/x", Err: unix.EACCES}, Denied, "EACCES"},
		{notHere(unix.EPERM, "switched off"), Unavailable, "EPERM"},
		{notHere(nil, "nothing at hand"), Unavailable, ""},
		{unix.Errno(524), Missing, "errno 524"},
		{errors.New("something else"), Missing, ""},
	} {
		status, errno := classify(c.err)
		require.Equal(t, c.status, status, "%v", c.err)
		require.Equal(t, c.errno, errno, "%v", c.err)
	}
}

func TestOlderThan(t *testing.T) {
	require.True(t, olderThan("5.4.0-1-amd64", "5.12"))
	require.False(t, olderThan("6.1.0-56-cloud-amd64", "5.12"))
	require.False(t, olderThan("6.1.0", "6.1"))
	require.False(t, olderThan("strange", "6.1"))
}

// TestFiltered: a call that only a filter can have refused is not called missing.
func TestFiltered(t *testing.T) {
	f := Feature{Name: "x", Since: "5.1", probe: func(*env) error { return unix.ENOSYS }}
	require.Equal(t, Missing, f.row(&env{release: "6.1.0"}).Status)
	require.Equal(t, Denied, f.row(&env{release: "6.1.0", filtered: true}).Status)
	require.Equal(t, Missing, f.row(&env{release: "5.0.0", filtered: true}).Status)
}

func TestVerdict(t *testing.T) {
	rows := []Row{{Name: "a", Need: Required, Status: Works}, {Name: "b", Need: Required, Status: Denied}, {Name: "c", Need: Used, Status: Missing}}
	require.NoError(t, Verdict(rows))
	require.ErrorContains(t, Verdict(append(rows, Row{Name: "d", Need: Required, Status: Missing})), `["d"]`)
}

// TestExercises: exercises name features that there are.
func TestExercises(t *testing.T) {
	known, names := map[string]bool{}, map[string]bool{}
	for _, f := range Features() {
		known[f.Name] = true
	}
	for _, x := range Exercises() {
		require.NotEmpty(t, x.Features, x.Name)
		require.NotContains(t, x.Name, ",")
		require.False(t, names[x.Name], "%s twice", x.Name)
		names[x.Name] = true
		for _, f := range x.Features {
			require.True(t, known[f], "%s: no feature %q", x.Name, f)
		}
		_, err := Inside(x.Name + "?")
		require.Error(t, err)
	}
}
