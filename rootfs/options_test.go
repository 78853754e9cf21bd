package rootfs

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// specOptions are those of the runtime-spec's table (config.md 1.3, "Linux
// mount options"), all of them.
var specOptions = strings.Fields(`async atime bind defaults dev diratime dirsync exec iversion lazytime loud mand noatime nodev nodiratime noexec noiversion
nolazytime nomand norelatime nostrictatime nosuid nosymfollow private ratime rbind rdev rdiratime relatime remount rexec rnoatime rnodiratime rnoexec
rnorelatime rnostrictatime rnosuid rnosymfollow ro rprivate rrelatime rro rrw rshared rslave rstrictatime rsuid rsymfollow runbindable rw shared silent
slave strictatime suid symfollow sync tmpcopyup unbindable idmap ridmap`)

func TestSpecOptionsAreKnown(t *testing.T) {
	for _, opt := range specOptions {
		o, err := parseOptions([]string{opt})
		require.NoError(t, err)
		require.Empty(t, o.data, "%s would be left to the file system", opt)
	}
}

func TestParseOptions(t *testing.T) {
	const atime = unix.MOUNT_ATTR__ATIME
	for in, want := range map[string]mountOptions{
		"ro nosuid rw":                {set: unix.MOUNT_ATTR_NOSUID, clr: unix.MOUNT_ATTR_RDONLY, super: []string{"rw"}},
		"rw ro":                       {set: unix.MOUNT_ATTR_RDONLY, super: []string{"ro"}},
		"noatime relatime":            {clr: atime},
		"relatime noatime":            {set: unix.MOUNT_ATTR_NOATIME, clr: atime},
		"rro rnosuid rrw":             {rset: unix.MOUNT_ATTR_NOSUID, rclr: unix.MOUNT_ATTR_RDONLY},
		"rstrictatime":                {rset: unix.MOUNT_ATTR_STRICTATIME, rclr: atime},
		"rshared private":             {propagation: []uint64{unix.MS_SHARED | unix.MS_REC, unix.MS_PRIVATE}},
		"rbind ridmap":                {bind: true, rec: true, idmap: true, ridmap: true},
		"user dev":                    {set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC, clr: unix.MOUNT_ATTR_NODEV},
		"ruser":                       {data: []string{"ruser"}},
		"sync size=1m,mode=755":       {super: []string{"sync"}, data: []string{"size=1m", "mode=755"}},
		`context="a:b:c0,c1",size=1`:  {data: []string{"context=a:b:c0,c1", "size=1"}},
		`lowerdir=/a\,b:/c`:           {data: []string{`lowerdir=/a\,b:/c`}},
		"x-systemd.automount _netdev": {},
	} {
		got, err := parseOptions(strings.Fields(in))
		require.NoError(t, err)
		require.Equal(t, want, got, in)
	}
	for _, bad := range []string{"", "a\x00b", "a\nb"} {
		_, err := parseOptions([]string{bad})
		require.Error(t, err)
	}
}

// showMounts prints options, super options and propagation of mounts below a
// prefix.
func showMounts(prefix string) string {
	return `while read -r id parent dev root where opts rest; do case $where in ` + prefix + `*) echo "$where $opts ${rest##* } ${rest%%- *}";; esac; done < /proc/self/mountinfo; `
}

// TestOptionsTakeEffect mounts a tmpfs with every kind of option, and binds of
// a mount whose attributes are known.
func TestOptionsTakeEffect(t *testing.T) {
	requireRoot(t)
	src := mountTmpfs(t, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOATIME)
	require.NoError(t, os.Mkdir(src+"/below", 0o755))
	mountTmpfsAt(t, src+"/below", unix.MS_NOEXEC)
	fresh := map[string]string{ // tmpfs: options, then super options
		"": "rw,relatime rw", "ro": "ro,relatime rw", "nosuid nodev noexec": "rw,nosuid,nodev,noexec,relatime rw",
		"noatime": "rw,noatime rw", "strictatime": "rw rw", "nodiratime": "rw,nodiratime,relatime rw", "norelatime": "rw,relatime rw",
		"nosymfollow": "rw,relatime,nosymfollow rw", "sync": "rw,relatime rw,sync", "dirsync": "rw,relatime rw,dirsync", "sync async": "rw,relatime rw",
		"lazytime": "rw,relatime rw,lazytime", "defaults silent loud iversion noiversion nomand": "rw,relatime rw", "noexec exec nosuid suid nodev dev ro rw": "rw,relatime rw",
		"rro rnosuid": "ro,nosuid,relatime rw", "size=64k mode=700": "rw,relatime rw,size=64k,mode=700",
	}
	bound := map[string][2]string{ // bind: the mount itself, then what is below
		"bind":                           {"rw,nosuid,nodev,noatime", ""},
		"rbind":                          {"rw,nosuid,nodev,noatime", "rw,noexec,relatime"},
		"bind ro":                        {"ro,nosuid,nodev,noatime", ""},
		"rbind ro":                       {"ro,nosuid,nodev,noatime", "rw,noexec,relatime"},
		"rbind rro":                      {"ro,nosuid,nodev,noatime", "ro,noexec,relatime"},
		"rbind rro rw":                   {"ro,nosuid,nodev,noatime", "ro,noexec,relatime"},
		"rbind suid dev relatime":        {"rw,relatime", "rw,noexec,relatime"},
		"rbind rsuid rdev rexec":         {"rw,noatime", "rw,relatime"},
		"rbind rnoatime rnodiratime":     {"rw,nosuid,nodev,noatime,nodiratime", "rw,noexec,noatime,nodiratime"},
		"rbind rstrictatime":             {"rw,nosuid,nodev", "rw,noexec"},
		"rbind ratime rnosymfollow":      {"rw,nosuid,nodev,relatime,nosymfollow", "rw,noexec,relatime,nosymfollow"},
		"rbind rrelatime rnoexec rnodev": {"rw,nosuid,nodev,noexec,relatime", "rw,nodev,noexec,relatime"},
	}
	s := defaultSpec(busyboxRoot(t))
	want := map[string]string{}
	for i, opts := range slices.Sorted(maps.Keys(fresh)) {
		dest := fmt.Sprintf("/t/%d", i)
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "tmpfs", Options: strings.Fields(opts)})
		want[dest] = fresh[opts]
	}
	for i, opts := range slices.Sorted(maps.Keys(bound)) {
		dest := fmt.Sprintf("/t/b%d", i)
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Source: src, Options: strings.Fields(opts)})
		want[dest] = bound[opts][0] + " rw"
		if below := bound[opts][1]; below != "" {
			want[dest+"/below"] = below + " rw"
		}
	}
	out, err := run(t, s, showMounts("/t/"))
	require.NoError(t, err)
	got := map[string]string{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		got[f[0]] = f[1] + " " + strings.TrimSuffix(f[2], ",inode64")
	}
	require.Equal(t, want, got)
}

// mountTmpfs mounts a tmpfs for the time of the test.
func mountTmpfs(t testing.TB, flags uintptr) string {
	dir := t.TempDir()
	mountTmpfsAt(t, dir, flags)
	return dir
}

func mountTmpfsAt(t testing.TB, dir string, flags uintptr) {
	require.NoError(t, unix.Mount("none", dir, "tmpfs", flags, ""))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}
