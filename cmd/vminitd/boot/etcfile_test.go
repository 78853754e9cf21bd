package boot

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestWriteEtc(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "etc", "resolv.conf")
	require.NoError(t, WriteEtc(path, "one\n", dir))
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Symlink("/nowhere/at/all", path))
	require.NoError(t, WriteEtc(path, "two\n", dir), "a dangling link is replaced")
	requireContent(t, path, "two\n")
	entries, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, entries, 1, "nothing left behind")
}

func requireContent(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, string(got))
}

func TestWriteEtcReadOnlyRoot(t *testing.T) {
	requireRoot(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS))
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	root, scratch := t.TempDir(), t.TempDir()
	path := filepath.Join(root, "resolv.conf")
	require.NoError(t, unix.Mount("root", root, "tmpfs", 0, ""))
	defer unix.Unmount(root, unix.MNT_DETACH)
	require.NoError(t, os.WriteFile(path, []byte("old\n"), 0o644))
	require.NoError(t, unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))

	require.NoError(t, WriteEtc(path, "new\n", scratch))
	requireContent(t, path, "new\n")
	before := mountsBelow(t, root)
	require.NoError(t, WriteEtc(path, "newer\n", scratch), "again, as when a lease changes")
	requireContent(t, path, "newer\n")
	require.Equal(t, before, mountsBelow(t, root), "nothing is mounted twice")

	absent := filepath.Join(root, "absent")
	require.NoError(t, WriteEtc(absent, "made\n", scratch), "there is nothing to bind over")
	requireContent(t, absent, "made\n")
	requireContent(t, path, "newer\n")
	require.NoError(t, unix.Unmount(root, unix.MNT_DETACH))
}

func mountsBelow(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	require.NoError(t, err)
	return strings.Count(string(b), dir)
}

// requireRoot skips a test that needs root, except on the rungs that promise it.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if rung := os.Getenv("VMINIT_RUNG"); rung == "root" || rung == "vm" {
		t.Fatal("this rung must run as root")
	}
	t.Skip("needs root")
}
