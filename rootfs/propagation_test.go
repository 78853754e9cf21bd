package rootfs

import (
	"os"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// sharedRoot is a root file system on a shared mount, beside a shared volume,
// as on a machine whose "/" is shared.
func sharedRoot(t *testing.T) (root, volume string) {
	requireRoot(t)
	base := mountTmpfs(t, 0)
	require.NoError(t, unix.Mount("", base, "", unix.MS_SHARED, ""))
	root, volume = base+"/rootfs", base+"/volume"
	require.NoError(t, os.Mkdir(root, 0o755))
	require.NoError(t, os.Mkdir(volume, 0o755))
	busyboxAt(t, root)
	mountTmpfsAt(t, volume, 0)
	require.NoError(t, unix.Mount("", volume, "", unix.MS_SHARED, ""))
	require.NoError(t, os.Mkdir(volume+"/sub", 0o755))
	return root, volume
}

func mountsBelow(t *testing.T, dir string) []string {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	require.NoError(t, err)
	var points []string
	for _, i := range infos {
		points = append(points, i.Mountpoint+" "+i.FSType)
	}
	return points
}

func TestRootfsPropagation(t *testing.T) {
	for name, want := range map[string]struct{ root, volume string }{
		"":            {"master", "master"},
		"slave":       {"master", "master"},
		"rslave":      {"master", "master"},
		"private":     {"", ""},
		"rprivate":    {"", ""},
		"unbindable":  {"unbindable", ""},
		"runbindable": {"unbindable", "unbindable"},
		"shared":      {"shared", "shared"},
		"rshared":     {"shared", "shared"},
	} {
		t.Run(name, func(t *testing.T) {
			root, volume := sharedRoot(t)
			before := mountsBelow(t, strings.TrimSuffix(root, "/rootfs"))
			s := defaultSpec(root)
			s.Linux.RootfsPropagation = name
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Source: volume, Options: []string{"rbind"}})
			out, err := box{script: `while read -r id parent dev r where opts rest; do case $where in /|/vol) echo "$where ${rest%%- *}";; esac; done < /proc/self/mountinfo`,
				beforeRun: func(int) {
					require.Equal(t, before, mountsBelow(t, strings.TrimSuffix(root, "/rootfs")), "nothing of the container may propagate to the guest")
				}}.run(t, s)
			require.NoError(t, err)
			got := map[string]string{}
			for line := range strings.Lines(out) {
				where, how, _ := strings.Cut(strings.TrimSpace(line), " ")
				kind, _, _ := strings.Cut(how, ":")
				got[where] = strings.TrimSpace(kind)
			}
			require.Equal(t, map[string]string{"/": want.root, "/vol": want.volume}, got)
			require.Equal(t, before, mountsBelow(t, strings.TrimSuffix(root, "/rootfs")), "nor when it ends")
		})
	}
}

// TestMountsPropagate mounts on either side and looks on the other.
func TestMountsPropagate(t *testing.T) {
	for _, tc := range []struct {
		rootfs  string
		options []string
		in, out bool // a mount of the guest appears inside, one of the container outside
	}{
		{"rshared", []string{"rbind", "rshared"}, true, true},
		{"rshared", []string{"rbind"}, true, true},
		{"rslave", []string{"rbind", "rslave"}, true, false},
		{"", []string{"rbind", "rprivate"}, false, false},
		{"", []string{"rbind", "rshared"}, true, false}, // its own peers, a slave of the guest's
		{"private", []string{"rbind", "shared"}, false, false},
	} {
		t.Run(tc.rootfs+" "+strings.Join(tc.options, ","), func(t *testing.T) {
			root, volume := sharedRoot(t)
			s := defaultSpec(root)
			s.Linux.RootfsPropagation = tc.rootfs
			for _, d := range []string{"/inside", "/outside"} {
				require.NoError(t, os.Mkdir(volume+d, 0o755))
			}
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Source: volume, Options: tc.options},
				specs.Mount{Destination: "/vol/inside", Type: "tmpfs"}) // made by us, inside
			var seen []string
			out, err := box{script: showMounts("/vol/outside"), beforeRun: func(int) {
				seen = mountsBelow(t, volume+"/inside")
				mountTmpfsAt(t, volume+"/outside", 0)
			}}.run(t, s)
			require.NoError(t, err)
			require.Equal(t, tc.in, out != "", "inside: %s", out)
			require.Equal(t, tc.out, len(seen) > 0, "outside: %s", seen)
			_ = unix.Unmount(volume+"/inside", unix.MNT_DETACH)
		})
	}
}

func TestUnknownPropagation(t *testing.T) {
	s := defaultSpec(busyboxRoot(t))
	s.Linux.RootfsPropagation = "nonsense"
	_, err := run(t, s, "true")
	require.EqualError(t, err, `linux.rootfsPropagation "nonsense" is not shared, slave, private or unbindable`)
}

func TestLongestParent(t *testing.T) {
	mounts := []*mountinfo.Info{{Mountpoint: "/"}, {Mountpoint: "/run/a"}, {Mountpoint: "/run"}}
	for dir, want := range map[string]string{"/run/a": "/run/a", "/run/a/b": "/run/a", "/run/ab": "/run", "/other": "/", "/": "/"} {
		got, err := longestParent(dir, mounts)
		require.NoError(t, err)
		require.Equal(t, want, got, dir)
	}
	_, err := longestParent("/x", nil)
	require.Error(t, err)
}
