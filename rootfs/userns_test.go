package rootfs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

var inUserNS = ids(0, 100000, 65536)

// TestUserNSClosedBundle: bundles are closed to everybody but the guest's root.
func TestUserNSClosedBundle(t *testing.T) {
	requireRoot(t)
	bundle := filepath.Join(t.TempDir(), "closed", "bundle")
	require.NoError(t, os.MkdirAll(bundle+"/rootfs", 0o700))
	require.NoError(t, os.Chmod(filepath.Dir(bundle), 0o700))
	require.NoError(t, os.Mkdir(bundle+"/vol", 0o755))
	require.NoError(t, os.WriteFile(bundle+"/hosts", []byte("127.0.0.1 here\n"), 0o644))
	busyboxAt(t, bundle+"/rootfs", "id")
	require.NoError(t, os.Chmod(bundle+"/rootfs", 0o755))
	s := defaultSpec("rootfs")
	s.Mounts = append(s.Mounts, mount("/etc/hosts", "", "hosts", "bind ro"), mount("/a/b/vol", "bind", "vol", "rbind"))
	require.NoError(t, os.Chown(bundle+"/rootfs", 100000, 100000))
	require.NoError(t, os.Chown(bundle+"/rootfs/etc", 100000, 100000))
	out, err := box{script: "cat /etc/hosts; id -u; ls -d /a/b/vol; echo x > /dev/null && echo written; cat /proc/self/uid_map", maps: inUserNS, opt: Options{Bundle: bundle}}.run(t, s)
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1 here\n0\n/a/b/vol\nwritten\n0 100000 65536", strings.Join(trimLines(out), "\n"))
}

func trimLines(s string) []string {
	var lines []string
	for line := range strings.Lines(s) {
		lines = append(lines, oneLine(line))
	}
	return lines
}

// TestLockedFlags: a bind in a user namespace keeps what the guest's mount has,
// and cannot take it away.
func TestLockedFlags(t *testing.T) {
	requireRoot(t)
	src := mountTmpfs(t, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME)
	require.NoError(t, os.Mkdir(src+"/below", 0o755))
	mountTmpfsAt(t, src+"/below", unix.MS_RDONLY)
	for options, want := range map[string]string{
		"rbind":             "/vol rw,nosuid,nodev,noexec,noatime|/vol/below ro,relatime",
		"rbind ro":          "/vol ro,nosuid,nodev,noexec,noatime|/vol/below ro,relatime",
		"rbind rro rnosuid": "/vol ro,nosuid,nodev,noexec,noatime|/vol/below ro,nosuid,relatime",
		"rbind rw noatime":  "/vol rw,nosuid,nodev,noexec,noatime|/vol/below ro,relatime", // says what is so already
		"rbind suid":        "mount /vol: in a user namespace, options cannot take away",
		"rbind exec":        "mount /vol: in a user namespace, options cannot take away",
		"rbind relatime":    "mount /vol: in a user namespace, options cannot take away",
		"rbind rrw":         "mount /vol: in a user namespace, options cannot take away",
		"bind":              "mount " + src + " on /vol: in a user namespace, what has mounts below can only be bound with them (rbind)",
	} {
		s := defaultSpec(busyboxRoot(t))
		s.Mounts = append(s.Mounts, mount("/vol", "", src, options))
		out, err := runUserNS(t, s, showMounts("/vol"))
		if err != nil {
			require.ErrorContains(t, err, want, options)
			require.ErrorIs(t, err, map[bool]error{true: unix.EINVAL, false: unix.EPERM}[options == "bind"])
			continue
		}
		var got []string
		for line := range strings.Lines(out) {
			got = append(got, strings.Join(strings.Fields(line)[:2], " "))
		}
		require.Equal(t, want, strings.Join(got, "|"), options)
	}
}

// TestSharedNetworkAndPIDs: sysfs of a container that shares the guest's
// network namespace, proc of one that shares its pid namespace.
func TestSharedNetworkAndPIDs(t *testing.T) {
	requireRoot(t)
	for name, tc := range map[string]struct {
		box  box
		want string
	}{
		"own":                    {box{}, "lo / /"},
		"shared":                 {box{keep: unix.CLONE_NEWNET | unix.CLONE_NEWPID}, ""},
		"own, user namespace":    {box{maps: inUserNS}, "lo / /"},
		"shared, user namespace": {box{maps: inUserNS, keep: unix.CLONE_NEWNET | unix.CLONE_NEWPID}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := defaultSpec(busyboxRoot(t, "echo"))
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
			tc.box.script = `echo /sys/class/net/*; ls -d /proc/` + pid() + `/ 2>/dev/null; ` + showMounts("/sys")
			out, err := tc.box.run(t, s)
			require.NoError(t, err)
			require.Contains(t, out, "/sys ro,nosuid,nodev,noexec,relatime")
			if tc.want == "" {
				require.Contains(t, out, "/proc/"+pid())
			} else {
				require.NotContains(t, out, "/proc/"+pid())
				require.Contains(t, out, "/sys/class/net/lo\n")
			}
		})
	}
	require.Empty(t, superOptionsOf(t, "/sys"))
}

func pid() string { p, _ := os.Readlink("/proc/self"); return p }

// TestDevicesInUserNS: the guest's nodes, wherever they are asked for.
func TestDevicesInUserNS(t *testing.T) {
	requireRoot(t)
	s := defaultSpec(busyboxRoot(t, "head", "wc"))
	mode, uid := os.FileMode(0o600), uint32(7)
	s.Linux.Devices = []specs.LinuxDevice{
		{Path: "/deep/down/in/here/fuse", Type: "c", Major: 10, Minor: 229},
		{Path: "/dev/mem/zero", Type: "c", Major: 1, Minor: 5, FileMode: &mode},
		{Path: "/dev/disk", Type: "b", Major: 7, Minor: 0},
		{Path: "/dev/initctl", Type: "p", FileMode: &mode, UID: &uid},
	}
	out, err := runUserNS(t, s, `stat -c '%n %F %t:%T' /deep/down/in/here/fuse /dev/mem/zero /dev/disk /dev/null /dev/tty; head -c 5 /dev/mem/zero | wc -c; stat -c '%F %a %u' /dev/initctl; readlink /dev/fd`)
	require.NoError(t, err)
	require.Equal(t, `/deep/down/in/here/fuse character special file a:e5
/dev/mem/zero character special file 1:5
/dev/disk block special file 7:0
/dev/null character special file 1:3
/dev/tty character special file 5:0
5
fifo 600 7
/proc/self/fd`, out)

	for want, d := range map[string]specs.LinuxDevice{
		"linux.devices: /dev/x: the guest has no char device 4000:1": {Path: "/dev/x", Type: "c", Major: 4000, Minor: 1},
	} {
		s.Linux.Devices = []specs.LinuxDevice{d}
		_, err := runUserNS(t, s, "true")
		require.ErrorContains(t, err, want)
	}
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "c", Major: 1, Minor: 3}}
	_, err = box{script: "true", maps: inUserNS, opt: Options{DeviceName: func(bool, uint32, uint32) (string, error) { return "zero", nil }}}.run(t, s)
	require.ErrorContains(t, err, "mount /dev/zero on /dev/x: it is not the guest's device 1:3")
}
