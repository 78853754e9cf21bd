package rootfs

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func mount(dest, fstype, source, options string) specs.Mount {
	return specs.Mount{Destination: dest, Type: fstype, Source: source, Options: strings.Fields(options)}
}

func TestRemount(t *testing.T) {
	requireRoot(t)
	src := mountTmpfs(t, unix.MS_NODEV)
	for _, tc := range []struct {
		name   string
		mounts []specs.Mount
		want   string
	}{
		{"mount only", []specs.Mount{mount("/t", "tmpfs", "", "nosuid size=64k"), mount("/t", "", "", "remount bind ro")}, "/t ro,nosuid,relatime rw,size=64k"},
		{"file system", []specs.Mount{mount("/t", "tmpfs", "", "nosuid size=64k"), mount("/t", "tmpfs", "", "remount size=128k noexec")}, "/t rw,nosuid,noexec,relatime rw,size=128k"},
		{"file system read-only", []specs.Mount{mount("/t", "tmpfs", "", "size=64k"), mount("/t", "tmpfs", "", "remount ro sync")}, "/t ro,relatime ro,sync,size=64k"},
		{"what is bound stays the guest's", []specs.Mount{mount("/t", "", src, "bind"), mount("/t", "", "", "remount ro")}, "/t ro,nodev,relatime rw"},
		{"attributes of sysfs, not its superblock", []specs.Mount{mount("/t/../sys", "sysfs", "", "remount ro nosuid noexec")}, ""},
		{"devtmpfs is the guest's", []specs.Mount{mount("/t", "devtmpfs", "d", ""), mount("/t", "", "", "remount ro")}, "/t ro,relatime rw"},
		{"devtmpfs is not made read-only", []specs.Mount{mount("/t", "devtmpfs", "d", "ro")}, "/t ro,relatime rw"},
		{"recursive", []specs.Mount{mount("/t", "tmpfs", "", ""), mount("/t/u", "tmpfs", "", ""), mount("/t", "", "", "remount bind rro rnosuid")}, "/t ro,nosuid,relatime rw\n/t/u ro,nosuid,relatime rw"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := defaultSpec(busyboxRoot(t))
			s.Mounts = append(s.Mounts, tc.mounts...)
			out, err := run(t, s, showMounts("/t"))
			require.NoError(t, err)
			var got []string
			for line := range strings.Lines(out) {
				f := strings.Fields(line)
				super := strings.ReplaceAll(f[2], ",inode64", "")
				if strings.Contains(tc.name, "devtmpfs") {
					super, _, _ = strings.Cut(super, ",") // its size is the guest's affair
				}
				got = append(got, f[0]+" "+f[1]+" "+super)
			}
			require.Equal(t, tc.want, strings.Join(got, "\n"))
		})
	}
	require.NotContains(t, superOptionsOf(t, "/sys"), "ro")
	require.NotContains(t, superOptionsOf(t, "/dev"), "ro")
	require.NotContains(t, superOptionsOf(t, src), "ro")
}

func TestRemountErrors(t *testing.T) {
	for want, mounts := range map[string][]specs.Mount{
		"remount /nosuch: no such file or directory":                       {mount("/nosuch", "", "", "remount ro")},
		"remount /tmp: invalid argument (mount_setattr)":                   {mount("/tmp", "", "", "remount ro")},
		"mount /sys: remount with options of the file system (size=1)":     {mount("/sys", "sysfs", "", "remount size=1")},
		"mount /dev/shm: remount with options of the file system (size=1)": {mount("/dev/shm", "tmpfs", "", "remount bind size=1")},
		"remount /dev/shm: invalid argument (fsconfig)":                    {mount("/dev/shm", "tmpfs", "", "remount nosuchoption=1")},
		"mount /t: the options mode=700 of devtmpfs":                       {mount("/t", "devtmpfs", "d", "mode=700")},
		"mount /dev/shm: idmap cannot be changed by remount":               {{Destination: "/dev/shm", Options: []string{"remount"}, UIDMappings: ids(0, 1, 1), GIDMappings: ids(0, 1, 1)}},
	} {
		s := defaultSpec(busyboxRoot(t))
		s.Mounts = append(s.Mounts, mounts...)
		_, err := run(t, s, "true")
		require.ErrorContains(t, err, want)
	}
}

func ids(container, host, size uint32) []specs.LinuxIDMapping {
	return []specs.LinuxIDMapping{{ContainerID: container, HostID: host, Size: size}}
}

// superOptionsOf returns the options of the file system a path is on.
func superOptionsOf(t *testing.T, name string) []string {
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(name, &st))
	if st.Flags&unix.ST_RDONLY != 0 {
		return []string{"ro"}
	}
	return nil
}
