package tasksvc

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	mountapi "vminit/api/services/mount/v1"
	"vminit/internal/sys"
)

func TestPlanMount(t *testing.T) {
	plan := func(fsType, source, target string, options ...string) (mountPlan, error) {
		return planMount(&mountapi.MountSpec{Type: fsType, Source: source, Target: target, Options: options})
	}
	p, err := plan("virtiofs", "share0", "/run/share/", "ro", "nosuid", "noatime", "rslave", "dax=always", "sync", "defaults")
	require.NoError(t, err)
	require.Equal(t, mountPlan{
		fsType: "virtiofs", source: "share0", target: "/run/share",
		set:         unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOATIME,
		clear:       unix.MOUNT_ATTR__ATIME,
		propagation: unix.MS_SLAVE | unix.MS_REC,
		flags:       []string{"ro", "sync"},
		data:        []string{"dax=always"},
	}, p)

	p, err = plan("", "/a", "/b", "rbind", "ro", "rw", "noexec", "exec")
	require.NoError(t, err)
	require.True(t, p.bind && p.recursive)
	require.Zero(t, p.set)
	require.EqualValues(t, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOEXEC, p.clear)
	require.Equal(t, []string{"rw"}, p.flags)

	for name, bad := range map[string]*mountapi.MountSpec{
		"nothing":          nil,
		"relative":         {Type: "tmpfs", Target: "run/x"},
		"root":             {Type: "tmpfs", Target: "//"},
		"dots":             {Type: "tmpfs", Target: "/run/../etc"},
		"NUL in target":    {Type: "tmpfs", Target: "/run/\x00"},
		"NUL in source":    {Type: "tmpfs", Source: "a\x00", Target: "/run/x"},
		"NUL in option":    {Type: "tmpfs", Target: "/run/x", Options: []string{"a=\x00"}},
		"no type":          {Source: "x", Target: "/run/x"},
		"bind of relative": {Type: "bind", Source: "x", Target: "/run/x"},
		"bind with data":   {Type: "bind", Source: "/x", Target: "/run/x", Options: []string{"size=1"}},
		"remount":          {Type: "tmpfs", Target: "/run/x", Options: []string{"remount"}},
		"loop":             {Type: "ext4", Source: "/x", Target: "/run/x", Options: []string{"loop"}},
		"empty option":     {Type: "tmpfs", Target: "/run/x", Options: []string{""}},
	} {
		_, err := planMount(bad)
		require.ErrorIs(t, err, sys.ErrInvalid, name)
	}
}

// FuzzPlanMount: no panic, and a plan's target is always a clean one.
func FuzzPlanMount(f *testing.F) {
	f.Add("bind", "/a", "/b", "ro", "rprivate")
	f.Add("tmpfs", "", "/run/x", "size=1m", "atime")
	f.Fuzz(func(t *testing.T, fsType, source, target, o1, o2 string) {
		p, err := planMount(&mountapi.MountSpec{Type: fsType, Source: source, Target: target, Options: []string{o1, o2}})
		if err != nil {
			return
		}
		if filepath.Clean(p.target) != p.target || p.target[0] != '/' || p.target == "/" || p.set&p.clear&^unix.MOUNT_ATTR__ATIME != 0 {
			t.Fatalf("%+v", p)
		}
	})
}

// privateMounts moves the test to a mount namespace of its own, which ends
// with the test's thread, and returns an empty directory in it.
func privateMounts(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		if rung := os.Getenv("VMINIT_RUNG"); rung == "root" || rung == "vm" {
			t.Fatal("this rung needs root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	runtime.LockOSThread() // never unlocked: the thread dies with the test
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNS))
	require.NoError(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func mountAll(m *Mounts, specs ...*mountapi.MountSpec) error {
	_, err := m.MountAll(context.Background(), &mountapi.MountAllRequest{Mounts: specs})
	return err
}

func unmountOne(m *Mounts, target string) error {
	_, err := m.Unmount(context.Background(), &mountapi.UnmountRequest{Target: target})
	return err
}

func unmountAll(m *Mounts) error {
	_, err := m.UnmountAll(context.Background(), &mountapi.UnmountAllRequest{})
	return err
}

func isMounted(t *testing.T, path string) bool {
	t.Helper()
	var st, up unix.Statx_t
	require.NoError(t, unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st))
	require.NoError(t, unix.Statx(unix.AT_FDCWD, filepath.Dir(path), 0, unix.STATX_MNT_ID, &up))
	return st.Mnt_id != up.Mnt_id
}

func TestMountAndUnmount(t *testing.T) {
	dir := privateMounts(t)
	m := newMounts()
	a, b, f := filepath.Join(dir, "x/y/a"), filepath.Join(dir, "b"), filepath.Join(dir, "x/file")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "source"), []byte("data"), 0o644))

	require.NoError(t, mountAll(m,
		&mountapi.MountSpec{Type: "tmpfs", Source: "t", Target: a, Options: []string{"size=1m", "nosuid", "mode=0711"}},
		&mountapi.MountSpec{Type: "bind", Source: a, Target: b, Options: []string{"ro", "rprivate"}},
		&mountapi.MountSpec{Source: filepath.Join(dir, "source"), Target: f, Options: []string{"bind"}},
	))
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(a, &st))
	require.EqualValues(t, 256, st.Blocks)
	require.NotZero(t, st.Flags&unix.ST_NOSUID)
	require.NoError(t, os.WriteFile(filepath.Join(a, "file"), nil, 0o644))
	require.ErrorIs(t, os.WriteFile(filepath.Join(b, "file"), nil, 0o644), unix.EROFS)
	data, err := os.ReadFile(f)
	require.NoError(t, err)
	require.Equal(t, "data", string(data))

	// In use: refused, still there, and still known.
	busy, err := os.Open(filepath.Join(a, "file"))
	require.NoError(t, err)
	err = unmountOne(m, a)
	require.Equal(t, codes.FailedPrecondition, status.Code(toStatus(err)), "%v", err)
	require.True(t, isMounted(t, a))
	busy.Close()
	require.NoError(t, unmountOne(m, a+"/"))
	require.False(t, isMounted(t, a))
	require.ErrorIs(t, unmountOne(m, a), sys.ErrNotFound)

	require.NoError(t, unmountAll(m))
	require.False(t, isMounted(t, b))
	require.False(t, isMounted(t, f))
	require.NoError(t, unmountAll(m), "nothing left to do")
}

// TestUnmountOnlyOurs: mounts of others are neither unmounted nor uncovered.
func TestUnmountOnlyOurs(t *testing.T) {
	dir := privateMounts(t)
	m := newMounts()
	other := filepath.Join(dir, "other")
	require.NoError(t, os.Mkdir(other, 0o755))
	require.NoError(t, unix.Mount("tmpfs", other, "tmpfs", 0, ""))
	require.ErrorIs(t, unmountOne(m, other), sys.ErrNotFound)

	ours := filepath.Join(dir, "ours")
	spec := &mountapi.MountSpec{Type: "tmpfs", Target: ours}
	require.NoError(t, mountAll(m, spec))
	require.NoError(t, unix.Mount("tmpfs", ours, "tmpfs", 0, ""))
	require.ErrorIs(t, unmountOne(m, ours), sys.ErrState)
	require.ErrorIs(t, unmountAll(m), sys.ErrState)
	require.NoError(t, unix.Unmount(ours, 0))
	require.NoError(t, unmountAll(m))
	require.False(t, isMounted(t, ours))
	require.True(t, isMounted(t, other))

	require.NoError(t, mountAll(m, spec))
	require.NoError(t, unix.Unmount(ours, 0)) // somebody was quicker
	require.NoError(t, unmountOne(m, ours))
	require.NoError(t, mountAll(m, spec, spec), "one over the other")
	require.NoError(t, unmountAll(m))
	require.False(t, isMounted(t, ours))
}

// TestMountAllRollsBack: when one fails nothing of the call is left, and what
// was there before stays.
func TestMountAllRollsBack(t *testing.T) {
	dir := privateMounts(t)
	m := newMounts()
	kept := filepath.Join(dir, "kept")
	require.NoError(t, mountAll(m, &mountapi.MountSpec{Type: "tmpfs", Target: kept}))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "plain"), nil, 0o644))
	require.NoError(t, os.Symlink("/etc", filepath.Join(dir, "link")))
	good := &mountapi.MountSpec{Type: "tmpfs", Target: filepath.Join(dir, "new/deep")}

	for name, bad := range map[string]*mountapi.MountSpec{
		"unknown type":      {Type: "nosuchfs", Target: filepath.Join(dir, "z")},
		"unknown option":    {Type: "tmpfs", Target: filepath.Join(dir, "z"), Options: []string{"nonsense=1"}},
		"missing source":    {Type: "bind", Source: filepath.Join(dir, "missing"), Target: filepath.Join(dir, "z/y")},
		"file in the way":   {Type: "tmpfs", Target: filepath.Join(dir, "plain/x")},
		"target is a file":  {Type: "tmpfs", Target: filepath.Join(dir, "plain")},
		"symlink on path":   {Type: "tmpfs", Target: filepath.Join(dir, "link/x")},
		"target is symlink": {Type: "tmpfs", Target: filepath.Join(dir, "link")},
		"invalid":           {Type: "tmpfs", Target: "relative"},
	} {
		err := mountAll(m, good, bad)
		require.Error(t, err, name)
		require.NoDirExists(t, filepath.Join(dir, "new"), name)
		require.NoDirExists(t, filepath.Join(dir, "z"), name)
		require.True(t, isMounted(t, kept), name)
		require.Len(t, m.done, 1, name)
	}
	err := mountAll(m, &mountapi.MountSpec{Type: "tmpfs", Target: filepath.Join(dir, "z"), Options: []string{"nonsense=1"}})
	require.ErrorContains(t, err, "nonsense")
	require.NoDirExists(t, "/etc/x")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = m.MountAll(ctx, &mountapi.MountAllRequest{Mounts: []*mountapi.MountSpec{good}})
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, unmountAll(m))
}

// newMounts is the service of a guest that has booted.
func newMounts() *Mounts {
	settled := make(chan struct{})
	close(settled)
	return NewMounts(settled, nil)
}

// A mount whose file system the kernel does not know yet waits for the rest of
// the boot; others do not.
func TestMountsWaitForModules(t *testing.T) {
	settled, complete := make(chan struct{}), make(chan struct{})
	m := NewMounts(settled, complete)
	ask := func(fsType string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := m.MountAll(ctx, &mountapi.MountAllRequest{Mounts: []*mountapi.MountSpec{{Type: fsType, Target: "relative"}}})
		return err
	}
	const waited = "wait for the guest to be set up"
	require.ErrorContains(t, ask("tmpfs"), waited)
	close(settled)
	require.ErrorContains(t, ask("tmpfs"), "relative", "it has got as far as looking at the target")
	require.ErrorContains(t, ask("nosuchfs"), waited)
	close(complete)
	require.ErrorContains(t, ask("nosuchfs"), "relative")
}
