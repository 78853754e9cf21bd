package rootfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

// busyboxRoot makes a root file system of busybox alone, with some of its
// commands.
func busyboxRoot(t testing.TB, commands ...string) string {
	dir := t.TempDir()
	busyboxAt(t, dir, commands...)
	return dir
}

func busyboxAt(t testing.TB, dir string, commands ...string) {
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc", "tmp"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	b, err := os.ReadFile("/bin/busybox")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(dir+"/bin/busybox", b, 0o755))
	for _, n := range append([]string{"sh", "cat", "ls", "stat", "pwd", "mount", "touch", "readlink"}, commands...) {
		require.NoError(t, os.Symlink("busybox", dir+"/bin/"+n))
	}
}

func defaultSpec(root string) *specs.Spec {
	return &specs.Spec{
		Root: &specs.Root{Path: root},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			MaskedPaths:   []string{"/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/scsi", "/proc/nosuch"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/sys", "/proc/nosuch"},
		},
	}
}

func TestDefaultContainerFileSystem(t *testing.T) {
	out, err := run(t, defaultSpec(busyboxRoot(t)), `cut() { while read a b c d e f; do echo "$e $f"; done; }
cut < /proc/self/mountinfo; ls -l /dev | while read m n u g x; do echo "$m $x"; done; cat /proc/kcore; ls /sys/firmware; touch /sys/firmware/x /proc/sys/x; readlink /proc/1/exe; pwd`)
	require.NoError(t, err)
	t.Log(out)
	require.Contains(t, out, "/proc/sys ro,")
	require.NotContains(t, out, "/work")
	require.Contains(t, out, "/bin/busybox")
}

func TestHostileDestinations(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(root string, s *specs.Spec)
		want string
	}{
		{"link to the root", func(root string, s *specs.Spec) {
			os.Symlink("/", root+"/mnt")
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mnt", Type: "tmpfs"})
		}, "mount tmpfs on /mnt|mount /mnt: the destination is the container's root itself"},
		{"proc is a link", func(root string, s *specs.Spec) {
			os.Remove(root + "/proc")
			os.Symlink("tmp", root+"/proc")
		}, "mount proc on /proc: too many levels of symbolic links (openat2)"},
		{"root", func(_ string, s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/.", Type: "tmpfs"})
		}, "the destination must be a path below /"},
		{"inside proc", func(_ string, s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/self/attr", Type: "tmpfs"})
		}, "inside /proc"},
		{"no root", func(_ string, s *specs.Spec) { s.Root.Path = "/nosuch/rootfs" }, "prepare root file system /nosuch/rootfs: no such file or directory (open_tree)"},
		{"unknown type", func(_ string, s *specs.Spec) { s.Mounts[5].Type = "nosuchfs" }, "mount nosuchfs on /sys: no such device (fsopen)"},
		{"bad option", func(_ string, s *specs.Spec) { s.Mounts[1].Options = []string{"nosuchoption=1"} }, "mount tmpfs on /dev: invalid argument (fsconfig)"},
		{"file in the way", func(root string, s *specs.Spec) {
			os.WriteFile(root+"/file", nil, 0o644)
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/file/x", Type: "tmpfs"})
		}, "mount tmpfs on /file/x: not a directory"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := busyboxRoot(t)
			s := defaultSpec(root)
			tc.edit(root, s)
			_, err := run(t, s, "true")
			require.Error(t, err)
			_, want, ok := strings.Cut(tc.want, "|")
			if !ok {
				want = tc.want
			}
			require.ErrorContains(t, err, want)
		})
	}
}

func TestDestinationsAreMadeInsideTheRoot(t *testing.T) {
	root := busyboxRoot(t)
	src := t.TempDir()
	require.NoError(t, os.WriteFile(src+"/f", []byte("hello\n"), 0o644))
	require.NoError(t, os.Symlink("/../../../../etc", root+"/out"))
	s := defaultSpec(root)
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/a/b/c/file", Type: "bind", Source: src + "/f", Options: []string{"bind", "ro"}},
		specs.Mount{Destination: "/out/vminit-test", Type: "bind", Source: src, Options: []string{"rbind", "rprivate"}})
	out, err := run(t, s, "cat /a/b/c/file /etc/vminit-test/f; touch /a/b/c/file 2>&1")
	require.NoError(t, err)
	require.Equal(t, "hello\nhello\ntouch: /a/b/c/file: Read-only file system", out)
	_, err = os.Stat("/etc/vminit-test")
	require.True(t, os.IsNotExist(err))
}
