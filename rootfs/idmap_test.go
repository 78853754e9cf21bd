package rootfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// ext4 mounts a new, small ext4: it supports id-mapped mounts on every kernel
// we run on. Files of several owners are in it, and another ext4 below.
func ext4(t *testing.T) string {
	requireRoot(t)
	fill := func(dir string) {
		for name, uid := range map[string]int{"root": 0, "one": 1, "thousand": 1000} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
			require.NoError(t, os.Chown(filepath.Join(dir, name), uid, uid))
		}
	}
	newMount := func() string {
		return assembled(t, Mount{Type: "ext4", Source: image(t, 4<<20, "mkfs.ext4", "-q", "-F"), Options: []string{"loop"}}) + "/rootfs"
	}
	dir := newMount()
	fill(dir)
	require.NoError(t, os.Mkdir(dir+"/below", 0o755))
	require.NoError(t, unix.Mount(newMount(), dir+"/below", "", unix.MS_BIND, ""))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir+"/below", unix.MNT_DETACH)) })
	fill(dir + "/below")
	return dir
}

func TestIDMap(t *testing.T) {
	src, userNS := ext4(t), ids(0, 100000, 65536)
	for name, tc := range map[string]struct {
		userNS  bool
		uid     []specs.LinuxIDMapping
		options []string
		want    string // root one thousand below/root new
	}{
		"own mapping":                 {false, ids(0, 5000, 10), []string{"rbind", "idmap"}, "5000:5000 5001:5001 65534:65534 0:0"},
		"own mapping, recursive":      {false, ids(0, 5000, 10), []string{"rbind", "ridmap"}, "5000:5000 5001:5001 65534:65534 5000:5000"},
		"without option":              {false, ids(0, 5000, 10), []string{"rbind"}, "5000:5000 5001:5001 65534:65534 0:0"},
		"several ranges":              {false, append(ids(0, 5000, 1), ids(1000, 7, 1)...), []string{"bind"}, "5000:5000 65534:65534 7:7 -"},
		"user namespace's":            {true, nil, []string{"rbind", "idmap"}, "0:0 1:1 1000:1000 65534:65534"},
		"user namespace's, recursive": {true, nil, []string{"rbind", "ridmap"}, "0:0 1:1 1000:1000 0:0"},
		"the same, spelled out":       {true, userNS, []string{"rbind", "idmap"}, "0:0 1:1 1000:1000 65534:65534"},
		"another in a user namespace": {true, ids(0, 101000, 2000), []string{"rbind", "ridmap"}, "1000:1000 1001:1001 2000:2000 1000:1000"},
		"none, in a user namespace":   {true, nil, []string{"rbind"}, "65534:65534 65534:65534 65534:65534 65534:65534"},
		"read-only in user namespace": {true, nil, []string{"rbind", "idmap", "ro", "nosuid"}, "0:0 1:1 1000:1000 65534:65534"},
	} {
		t.Run(name, func(t *testing.T) {
			s := defaultSpec(busyboxRoot(t))
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Source: src, Options: tc.options, UIDMappings: tc.uid, GIDMappings: tc.uid})
			b := box{script: `cd /vol; for f in root one thousand below/root; do stat -c %u:%g $f 2>/dev/null || echo -; done`}
			if tc.userNS {
				b.maps = userNS
			}
			out, err := b.run(t, s)
			require.NoError(t, err)
			require.Equal(t, tc.want, oneLine(out))
		})
	}
}

// TestIDMapBothWays: what is made through an id-mapped mount belongs, on the
// file system, to whom the mapping says.
func TestIDMapBothWays(t *testing.T) {
	src := ext4(t)
	require.NoError(t, os.Chmod(src, 0o777))
	s := defaultSpec(busyboxRoot(t))
	s.Mounts = append(s.Mounts, mount("/vol", "", src, "bind idmap"))
	maps := append(ids(1000, 0, 1), ids(0, 5000, 1)...)
	s.Mounts[len(s.Mounts)-1].UIDMappings, s.Mounts[len(s.Mounts)-1].GIDMappings = maps, maps
	out, err := run(t, s, `touch /vol/new; stat -c %u:%g /vol/new`)
	require.NoError(t, err)
	require.Equal(t, "0:0", out)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(src+"/new", &st))
	require.Equal(t, []uint32{1000, 1000}, []uint32{st.Uid, st.Gid})
}

func TestIDMapErrors(t *testing.T) {
	both := func(dest, source string, options []string, m []specs.LinuxIDMapping) specs.Mount {
		return specs.Mount{Destination: dest, Source: source, Options: options, UIDMappings: m, GIDMappings: m}
	}
	for name, tc := range map[string]struct {
		mount specs.Mount
		want  string
		is    error
	}{
		"no mapping":     {mount("/vol", "", "/tmp", "bind idmap"), "mount /vol: idmap without uidMappings and gidMappings, and there is no user namespace to take them from", sys.ErrInvalid},
		"half a mapping": {specs.Mount{Destination: "/vol", Source: "/tmp", Options: []string{"bind"}, UIDMappings: ids(0, 1, 1)}, "uidMappings and gidMappings belong together", sys.ErrInvalid},
		"unfit fs":       {both("/vol", "/proc/sys", []string{"bind", "idmap"}, ids(0, 1, 1)), "mount /vol: its file system (proc) does not support id-mapped mounts on this kernel: invalid argument", sys.ErrUnsupported},
		"unfit fs below": {both("/vol", "/dev", []string{"rbind", "ridmap"}, ids(0, 1, 1)), "mount /vol: one of its file systems does not support id-mapped mounts on this kernel", sys.ErrUnsupported},
		"overlap":        {both("/vol", "/tmp", []string{"bind", "idmap"}, append(ids(0, 1, 10), ids(5, 100, 10)...)), "write uid_map (0 1 10, 5 100 10): the ranges overlap, are empty or too many", sys.ErrInvalid},
		"empty":          {both("/vol", "/tmp", []string{"bind", "idmap"}, ids(0, 1, 0)), "write uid_map (0 1 0): the ranges overlap, are empty or too many", sys.ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			s := defaultSpec(busyboxRoot(t))
			s.Mounts = append(s.Mounts, tc.mount)
			_, err := run(t, s, "true")
			require.ErrorContains(t, err, tc.want)
			require.ErrorIs(t, err, tc.is)
			l, _ := launcher()
			require.Zero(t, l.Children())
		})
	}
}
