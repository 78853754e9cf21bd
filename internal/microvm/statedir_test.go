package microvm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

func TestClaim(t *testing.T) {
	root := filepath.Join(t.TempDir(), "vms")
	d, err := claim(root, "a")
	require.NoError(t, err)
	fi, err := os.Stat(d.path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), fi.Mode().Perm())

	// Flock belongs to the open file, so it holds within one process too.
	require.NoError(t, d.writeMeta(Meta{Name: "a", PID: os.Getpid()}))
	_, err = claim(root, "a")
	require.ErrorIs(t, err, sys.ErrExists)
	in, err := Find(root, "a")
	require.NoError(t, err)
	require.Equal(t, os.Getpid(), in.PID)

	require.NoError(t, d.remove())
	require.NoDirExists(t, d.path)
	_, err = Find(root, "a")
	require.ErrorIs(t, err, sys.ErrNotFound)
}

// deadVM leaves what a killed owner leaves.
func deadVM(t *testing.T, root, name string) string {
	t.Helper()
	d, err := claim(root, name)
	require.NoError(t, err)
	require.NoError(t, d.writeMeta(Meta{Name: name}))
	require.NoError(t, os.WriteFile(d.file(consoleFile), []byte("old"), 0o600))
	require.NoError(t, d.lock.Close())
	return d.path
}

func TestStaleIsCleared(t *testing.T) {
	root := t.TempDir()

	path := deadVM(t, root, "found")
	_, err := Find(root, "found")
	require.ErrorIs(t, err, sys.ErrNotFound)
	require.NoDirExists(t, path)

	deadVM(t, root, "listed")
	live, err := claim(root, "live")
	require.NoError(t, err)
	require.NoError(t, live.writeMeta(Meta{Name: "live"}))
	starting, err := claim(root, "starting")
	require.NoError(t, err)
	defer starting.remove()
	require.NoError(t, os.WriteFile(filepath.Join(root, "other"), nil, 0o600))
	all, err := List(root)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, "live", all[0].Name)
	require.NoDirExists(t, filepath.Join(root, "listed"))
	require.NoError(t, live.remove())

	deadVM(t, root, "again")
	d, err := claim(root, "again")
	require.NoError(t, err)
	require.NoFileExists(t, d.file(consoleFile))
	require.NoError(t, d.remove())
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "c1", "vm-0.a_B", strings.Repeat("x", 40)} {
		require.NoError(t, checkName(good))
	}
	for _, bad := range []string{"", ".", "..", "-a", ".a", "a/b", "a b", "ä", "a\n", strings.Repeat("x", 41)} {
		require.ErrorIs(t, checkName(bad), sys.ErrInvalid, bad)
		_, err := Find(t.TempDir(), bad)
		require.ErrorIs(t, err, sys.ErrInvalid, bad)
	}
	require.NoError(t, checkName(randomName()))
}

func TestLongPathIsRefused(t *testing.T) {
	root := filepath.Join(t.TempDir(), strings.Repeat("x", 90))
	_, err := claim(root, "a")
	require.ErrorIs(t, err, sys.ErrInvalid)
	require.NoDirExists(t, root)
}

func TestStateRoot(t *testing.T) {
	const mine, session = "VMINIT_STATE_DIR", "XDG_RUNTIME_DIR"
	for _, tt := range []struct {
		env    map[string]string
		euid   int
		userns bool
		want   string
	}{
		{map[string]string{session: "/run/user/1"}, 1, false, "/run/user/1/vminit"},
		{map[string]string{session: "/run/user/0"}, 0, false, "/run/vminit"},
		{map[string]string{session: "/run/user/1"}, 0, true, "/run/user/1/vminit"},
		{nil, 0, false, "/run/vminit"},
		{nil, 0, true, "/run/vminit"},
		{map[string]string{session: "/run/user/0", mine: "/a/b/"}, 0, false, "/a/b"},
		{map[string]string{session: "/run/user/1", mine: "/a"}, 1, false, "/a"},
		{map[string]string{mine: "a"}, 0, false, ""},
		{map[string]string{session: "a"}, 0, true, "/run/vminit"},
	} {
		dir, err := stateDirectory(func(name string) string { return tt.env[name] }, tt.euid, tt.userns)
		require.Equal(t, tt.want == "", err != nil, "%v: %v", tt, err)
		require.Equal(t, tt.want, dir, "%v", tt)
	}

	t.Setenv(mine, "/a")
	root, err := StateRoot()
	require.NoError(t, err)
	require.Equal(t, "/a/vms", root)
}

// TestRemoveForeign: the directory was removed while its machine ran, and made
// again for another of the same name.
func TestRemoveForeign(t *testing.T) {
	root := t.TempDir()
	first, err := claim(root, "a")
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(first.path))
	second, err := claim(root, "a")
	require.NoError(t, err)
	require.NoError(t, second.writeMeta(Meta{Name: "a"}))
	require.NoError(t, first.remove())
	_, err = Find(root, "a")
	require.NoError(t, err)
	require.NoError(t, second.remove())
	require.NoDirExists(t, second.path)
}

func TestOwnDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mine")
	require.NoError(t, ownDirectory(dir))
	require.NoError(t, ownDirectory(dir))
	require.NoError(t, os.Chmod(dir, 0o755))
	require.ErrorIs(t, ownDirectory(dir), sys.ErrState)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink("/", link))
	require.ErrorIs(t, ownDirectory(link), sys.ErrState)
}

func TestReadMeta(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meta.json")
	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	_, err := readMeta(path)
	require.Error(t, err)
	require.NoError(t, os.Truncate(path, maxMeta+1))
	_, err = readMeta(path)
	require.ErrorIs(t, err, sys.ErrInvalid)
}

func TestStartTick(t *testing.T) {
	tick, err := startTick(os.Getpid())
	require.NoError(t, err)
	require.NotZero(t, tick)
	tick, err = parseStartTick("7 (a) b) (c) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 424242 1 1\n")
	require.NoError(t, err)
	require.EqualValues(t, 424242, tick)
	for _, bad := range []string{"", "7 (a) S 1", "7 a S"} {
		_, err := parseStartTick(bad)
		require.ErrorIs(t, err, sys.ErrInvalid)
	}
}
