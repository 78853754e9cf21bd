package rootfs

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestBinds(t *testing.T) {
	requireRoot(t)
	bundle := t.TempDir()
	require.NoError(t, os.MkdirAll(bundle+"/data/sub", 0o755))
	require.NoError(t, os.WriteFile(bundle+"/data/file", []byte("file\n"), 0o644))
	require.NoError(t, os.WriteFile(bundle+"/data/sub/file", []byte("sub\n"), 0o644))
	require.NoError(t, os.Symlink("data/file", bundle+"/link"))
	root := busyboxRoot(t)
	require.NoError(t, os.WriteFile(root+"/etc/existing", []byte("old\n"), 0o644))
	s := defaultSpec(root)
	s.Mounts = append(s.Mounts,
		mount("/abs", "", bundle+"/data", "bind"), mount("/rel", "none", "data", "bind"), mount("/dots", "bind", "data/../data/./sub", ""),
		mount("/etc/existing", "bind", "data/file", "ro"), mount("/etc/new/file", "", "link", "bind"), mount("relative/destination", "", "data", "rbind"),
		mount("/tmp", "tmpfs", "tmpfs", "mode=700"), mount("/tmp/in/side", "", "data", "bind"), mount("/tmp/in/side/sub", "", "data", "bind"), mount("/tmp/in/side/sub/file", "", "data/sub/file", "bind"))
	out, err := box{opt: Options{Bundle: bundle}, script: `cat /abs/file /rel/file /dots/file /etc/existing /etc/new/file /relative/destination/file /tmp/in/side/file /tmp/in/side/sub/file
stat -c %a /tmp; stat -c '%F %s' /etc/new/file; touch /etc/existing 2>&1`}.run(t, s)
	require.NoError(t, err)
	require.Equal(t, "file file sub file file file file sub 700 regular file 5 touch: /etc/existing: Read-only file system", oneLine(out))
	require.NoFileExists(t, bundle+"/data/in")
}

// TestDestinationLinks: links of the image are followed inside the image, also
// where they dangle, as resolv.conf does in images of systemd distributions.
func TestDestinationLinks(t *testing.T) {
	requireRoot(t)
	src := t.TempDir()
	require.NoError(t, os.WriteFile(src+"/f", []byte("content\n"), 0o644))
	for name, tc := range map[string]struct {
		links map[string]string // path -> target
		dest  string
		file  bool
		at    string // where it must be in the container
	}{
		"absolute":                   {map[string]string{"/link": "/tmp"}, "/link/x", false, "/tmp/x"},
		"relative":                   {map[string]string{"/var": "tmp"}, "/var/x", true, "/tmp/x"},
		"above the root":             {map[string]string{"/link": "../../../../tmp"}, "/link/x", false, "/tmp/x"},
		"last component":             {map[string]string{"/link": "/tmp"}, "/link", false, "/tmp"},
		"dangling file":              {map[string]string{"/etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf"}, "/etc/resolv.conf", true, "/run/systemd/resolve/stub-resolv.conf"},
		"dangling absolute file":     {map[string]string{"/etc/hosts": "/nosuch/dir/hosts"}, "/etc/hosts", true, "/nosuch/dir/hosts"},
		"dangling directory":         {map[string]string{"/run": "/var/run"}, "/run/a/b", false, "/var/run/a/b"},
		"dangling chain":             {map[string]string{"/a": "b", "/b": "tmp/../c", "/c": "/d/e"}, "/a/x", false, "/d/e/x"},
		"dangling above the root":    {map[string]string{"/a": "../../../etc/nosuch/thing"}, "/a", false, "/etc/nosuch/thing"},
		"onto a mount":               {map[string]string{"/a": "/dev/shm/deep/er"}, "/a", true, "/dev/shm/deep/er"},
		"dot dot behind a real link": {map[string]string{"/tmp/up": "../etc"}, "/tmp/up/../x", false, "/tmp/x"}, // cleaned first
	} {
		for _, user := range []string{"", " in a user namespace"} {
			t.Run(name+user, func(t *testing.T) {
				root := busyboxRoot(t)
				for path, target := range tc.links {
					require.NoError(t, os.Symlink(target, root+path))
				}
				f := run
				if user != "" {
					f = runUserNS
					for _, d := range []string{"etc", "tmp"} {
						require.NoError(t, os.Chown(root+"/"+d, 100000, 100000))
					}
				}
				s := defaultSpec(root)
				m := mount(tc.dest, "", src, "bind")
				if tc.file {
					m.Source = src + "/f"
				}
				s.Mounts = append(s.Mounts, m)
				out, err := f(t, s, showMounts(tc.at)+`cat `+tc.at+`/f `+tc.at+` 2>/dev/null; stat -c %u `+filepath.Dir(tc.at))
				require.NoError(t, err)
				require.True(t, strings.HasPrefix(out, tc.at+" "), out)
				require.Contains(t, out, "content")
				if strings.Contains(name, "dangling") { // what was made on the way is the container's
					require.True(t, strings.HasSuffix(out, "0"), out)
				}
			})
		}
	}
}

func TestDestinationErrors(t *testing.T) {
	requireRoot(t)
	root := func(t *testing.T) string {
		r := busyboxRoot(t)
		require.NoError(t, os.Symlink("loop2", r+"/loop1"))
		require.NoError(t, os.Symlink("loop1", r+"/loop2"))
		require.NoError(t, os.Symlink("/proc", r+"/toproc"))
		require.NoError(t, os.Symlink("/proc/self/fd/0", r+"/magic"))
		require.NoError(t, os.Symlink("..", r+"/toroot"))
		return r
	}
	for want, m := range map[string]specs.Mount{
		"too many levels of symbolic links":                                      mount("/loop1/x", "tmpfs", "", ""),
		"mount /toproc/self/attr: cannot be mounted because it leads into /proc": mount("/toproc/self/attr", "tmpfs", "", ""),
		"mount /toproc/sys: cannot be mounted because it leads into /proc":       mount("/toproc/sys", "", "/tmp", "bind"),
		"mount tmpfs on /magic: too many levels":                                 mount("/magic", "tmpfs", "", ""),
		"mount /toroot: the destination is the container's root itself":          mount("/toroot", "tmpfs", "", ""),
		"mount /proc/acpi: cannot be mounted because it is inside /proc":         mount("/proc/acpi", "tmpfs", "", ""),
		"mount /proc: cannot be mounted because it is inside /proc":              mount("/proc", "", "/tmp", "bind"),
		"mount /nosuch on /x: no such file or directory (open_tree)":             mount("/x", "", "/nosuch", "bind"),
		"mount /x: bind without a source":                                        mount("/x", "", "", "bind"),
		"mount /x: file system type \"\"":                                        mount("/x", "", "src", "ro"),
		"mount /x: file system type \"../../etc\"":                               mount("/x", "../../etc", "src", "ro"),
		"mount : the destination must be a path below /":                         mount("", "tmpfs", "", ""),
		"mount ..: the destination must be a path below /":                       mount("..", "tmpfs", "", ""),
		"mount /x: tmpcopyup is for new mounts of type tmpfs":                    mount("/x", "", "/tmp", "bind tmpcopyup"),
	} {
		s := defaultSpec(root(t))
		s.Mounts = append(s.Mounts, m)
		_, err := run(t, s, "true")
		require.ErrorContains(t, err, want)
	}
}

func TestProcFilesMayBeCovered(t *testing.T) {
	requireRoot(t)
	src := t.TempDir()
	require.NoError(t, os.WriteFile(src+"/f", []byte("fake\n"), 0o644))
	s := defaultSpec(busyboxRoot(t))
	s.Mounts = append(s.Mounts, mount("/proc/meminfo", "", src+"/f", "bind ro"), mount("/proc/uptime", "", src+"/f", "bind"))
	out, err := run(t, s, "cat /proc/meminfo /proc/uptime")
	require.NoError(t, err)
	require.Equal(t, "fake\nfake", out)
}

// TestCgroupMount: with a cgroup namespace a hierarchy of its own, without the
// container's directory; read-only unless it says otherwise.
func TestCgroupMount(t *testing.T) {
	requireRoot(t)
	hierarchy := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			hierarchy = dir
		}
	}
	require.NotEmpty(t, hierarchy)
	own := filepath.Join(hierarchy, "vminit-rootfs-test")
	require.NoError(t, os.Mkdir(own, 0o755))
	defer os.Remove(own)
	require.NoError(t, os.Mkdir(own+"/inner", 0o755))
	defer os.Remove(own + "/inner")
	for name, tc := range map[string]struct {
		keep    uint64
		options string
		want    string
	}{
		"namespace":     {0, "nosuid noexec nodev relatime ro", "/cg ro,nosuid,nodev,noexec,relatime false"},
		"default":       {0, "", "/cg ro,relatime false"},
		"rw":            {0, "rw nosuid", "/cg rw,nosuid,relatime false"},
		"no namespace":  {unix.CLONE_NEWCGROUP, "nosuid noexec nodev relatime", "/cg ro,nosuid,nodev,noexec,relatime true"},
		"not namespace": {unix.CLONE_NEWCGROUP, "rw", "/cg rw true"},
		"data":          {0, "nsdelegate memory_recursiveprot", "/cg ro,relatime false"},
	} {
		t.Run(name, func(t *testing.T) {
			s := defaultSpec(busyboxRoot(t, "test", "mkdir"))
			s.Mounts = append(s.Mounts, mount("/cg", "cgroup", "cgroup", tc.options))
			out, err := box{keep: tc.keep, opt: Options{Cgroup: own}, script: showMounts("/cg") + `test -d /cg/inner && echo true || echo false; cat /cg/cgroup.procs > /dev/null && echo readable`}.run(t, s)
			require.NoError(t, err)
			f := strings.Fields(out)
			if name == "not namespace" { // a bind: the rest is as the hierarchy's own mount has it
				f[1], _, _ = strings.Cut(f[1], ",")
			}
			require.Equal(t, tc.want+" readable", strings.Join([]string{f[0], f[1], f[len(f)-2], f[len(f)-1]}, " "))
		})
	}
}

// TestTmpfs: its mode is that of what it covers unless it says so, and a
// read-only one is complete before it becomes so.
func TestTmpfs(t *testing.T) {
	root := busyboxRoot(t)
	require.NoError(t, os.Mkdir(root+"/covered", 0o700))
	require.NoError(t, os.Chmod(root+"/covered", os.ModeSticky|0o751))
	src := t.TempDir()
	s := defaultSpec(root)
	s.Process = &specs.Process{Terminal: true}
	s.Mounts[1].Options = append(s.Mounts[1].Options, "ro")
	s.Mounts = append(s.Mounts, mount("/covered", "tmpfs", "", ""), mount("/explicit", "tmpfs", "", "mode=750"), mount("/new", "tmpfs", "", ""),
		mount("/frozen", "tmpfs", "", "ro"), mount("/frozen/a/b", "", src, "bind"))
	out, err := run(t, s, `stat -c '%n %a' /covered /explicit /new /frozen/a; `+showMounts("/frozen")+showMounts("/dev")+`ls /dev/null /dev/console /dev/pts/ptmx`)
	require.NoError(t, err)
	var lines []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		lines = append(lines, strings.Join(f[:min(2, len(f))], " "))
	}
	require.Equal(t, []string{"/covered 1751", "/explicit 750", "/new 1777", "/frozen/a 755", "/frozen ro,relatime", "/frozen/a/b rw,relatime",
		"/dev ro,nosuid", "/dev/pts rw,nosuid,noexec,relatime", "/dev/shm rw,nosuid,nodev,noexec,relatime", "/dev/mqueue rw,nosuid,nodev,noexec,relatime",
		"/dev/console", "/dev/null", "/dev/pts/ptmx"}, lines)
}

func TestDevices(t *testing.T) {
	requireRoot(t)
	root := busyboxRoot(t)
	require.NoError(t, unix.Mknod(root+"/there", unix.S_IFCHR|0o640, int(unix.Mkdev(1, 7))))
	mode, loose, uid, gid := os.FileMode(0o640), os.FileMode(unix.S_IFBLK|0o1604), uint32(7), uint32(8)
	s := defaultSpec(root)
	s.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/loop", Type: "b", Major: 7, Minor: 1, FileMode: &loose, GID: &gid}, {Path: "/dev/deep/er/u", Type: "u", Major: 1, Minor: 3, FileMode: &mode, UID: &uid, GID: &gid},
		{Path: "/dev/fifo", Type: "p", Major: 5, Minor: 5, UID: &uid}, {Path: "/there", Type: "c", Major: 1, Minor: 7}, {Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: &mode},
	}
	out, err := run(t, s, `stat -c '%n %F %a %u:%g %t:%T' /dev/loop /dev/deep/er/u /dev/fifo /there /dev/null /dev/zero; for l in ptmx fd stdin; do readlink /dev/$l; done`)
	require.NoError(t, err)
	require.Equal(t, `/dev/loop block special file 1604 0:8 7:1
/dev/deep/er/u character special file 640 7:8 1:3
/dev/fifo fifo 666 7:0 0:0
/there character special file 640 0:0 1:7
/dev/null character special file 640 0:0 1:3
/dev/zero character special file 666 0:0 1:5
pts/ptmx
/proc/self/fd
/proc/self/fd/0`, out)
}

func TestDeviceErrors(t *testing.T) {
	requireRoot(t)
	suid, plain := os.FileMode(0o4755), func(root string) {}
	for want, tc := range map[string]struct {
		prepare func(root string)
		device  specs.LinuxDevice
	}{
		"make device /x: something else is there already|file":      {func(r string) { _ = os.WriteFile(r+"/x", nil, 0o644) }, specs.LinuxDevice{Path: "/x", Type: "p"}},
		"make device /x: something else is there already|link":      {func(r string) { _ = os.Symlink("/etc/passwd", r+"/x") }, specs.LinuxDevice{Path: "/x", Type: "p"}},
		"make device /x: something else is there already|block":     {func(r string) { _ = unix.Mknod(r+"/x", unix.S_IFBLK, 259) }, specs.LinuxDevice{Path: "/x", Type: "c", Major: 1, Minor: 3}},
		"make device /x: something else is there already|other":     {func(r string) { _ = unix.Mknod(r+"/x", unix.S_IFCHR, 260) }, specs.LinuxDevice{Path: "/x", Type: "c", Major: 1, Minor: 3}},
		"make device /x: something else is there already|directory": {func(r string) { _ = os.Mkdir(r+"/x", 0o755) }, specs.LinuxDevice{Path: "/x", Type: "c", Major: 1, Minor: 3}},
		`linux.devices: /x is of type "d"`:                          {plain, specs.LinuxDevice{Path: "/x", Type: "d"}},
		`linux.devices: "x" is not an absolute path`:                {plain, specs.LinuxDevice{Path: "x", Type: "p"}},
		`linux.devices: "/.." is not an absolute path below /`:      {plain, specs.LinuxDevice{Path: "/..", Type: "p"}},
		"linux.devices: /x has the numbers -1:3":                    {plain, specs.LinuxDevice{Path: "/x", Type: "c", Major: -1, Minor: 3}},
		"linux.devices: /x has the numbers 1:1048576":               {plain, specs.LinuxDevice{Path: "/x", Type: "b", Major: 1, Minor: 1 << 20}},
		"linux.devices: /x has fileMode 04755":                      {plain, specs.LinuxDevice{Path: "/x", Type: "c", Major: 1, Minor: 3, FileMode: &suid}},
	} {
		s := defaultSpec(busyboxRoot(t))
		tc.prepare(s.Root.Path)
		s.Linux.Devices = []specs.LinuxDevice{tc.device}
		_, err := run(t, s, "true")
		want, _, _ = strings.Cut(want, "|")
		require.ErrorContains(t, err, want)
	}
}

func TestMountLabel(t *testing.T) {
	s := defaultSpec("/rootfs")
	s.Linux.MountLabel = "system_u:object_r:svirt_sandbox_file_t:s0:c715,c811"
	_, err := run(t, s, "true")
	require.EqualError(t, err, `linux.mountLabel "system_u:object_r:svirt_sandbox_file_t:s0:c715,c811": SELinux is not enabled in this kernel`)
}

// TestJoinOptions: a context of SELinux ends at a comma unless it is quoted.
func TestJoinOptions(t *testing.T) {
	for want, options := range map[string][]string{
		``:                                    nil,
		`mode=700,ro`:                         {"mode=700", "ro"},
		`context=u:r:t:s0,size=1m`:            {"context=u:r:t:s0", "size=1m"},
		`context="u:r:t:s0:c1,c2",size=1m`:    {"context=u:r:t:s0:c1,c2", "size=1m"},
		`fscontext="a,b",defcontext="a,b"`:    {"fscontext=a,b", "defcontext=a,b"},
		`rootcontext="a,b",mycontext=a,b`:     {"rootcontext=a,b", "mycontext=a,b"},
		`lowerdir=/a\,b:/c,context="u:c1,c2"`: {`lowerdir=/a\,b:/c`, "context=u:c1,c2"},
	} {
		given := slices.Clone(options)
		require.Equal(t, want, joinOptions(options))
		require.Equal(t, given, options)
	}
}

// TestLongOptions: what fsconfig(2) does not take goes through mount(2).
func TestLongOptions(t *testing.T) {
	requireRoot(t)
	base := t.TempDir()
	var lower []string
	for _, n := range []string{"a", "b", "c", "d"} {
		dir := filepath.Join(base, strings.Repeat(n, 80))
		layer(t, dir, n)
		lower = append(lower, dir)
	}
	s := defaultSpec(busyboxRoot(t))
	s.Mounts = append(s.Mounts, mount("/merged/here", "overlay", "overlay", "lowerdir="+strings.Join(lower, ":")+" ro nosuid rnodev rprivate"))
	out, err := run(t, s, showMounts("/merged")+`cat /merged/here/top /merged/here/d; pwd`)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(out, "/merged/here ro,nosuid,nodev,relatime"), out)
	require.True(t, strings.HasSuffix(out, "ad/"), out)
	s.Mounts[len(s.Mounts)-1].Options = []string{"lowerdir=" + strings.Repeat("/x", 3000)}
	_, err = run(t, s, "true")
	require.ErrorContains(t, err, "mount /merged/here: the options are 6009 bytes long")
}
