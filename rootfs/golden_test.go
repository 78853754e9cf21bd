package rootfs

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

var update = flag.Bool("update", false, "rewrite golden files")

// paperGuest is a guest that exists only on paper.
var paperGuest = Options{
	Bundle: "/bundle", Namespaces: allNamespaces, Cgroup: "/sys/fs/cgroup/c1",
	Stat: func(name string) (fs.FileMode, error) {
		switch filepath.Base(name) {
		case "nosuch":
			return 0, fs.ErrNotExist
		case "resolv.conf":
			return 0o644, nil
		}
		return fs.ModeDir | 0o755, nil
	},
	ParentMount: func(dir string) (string, error) { return "/bundle", nil },
	DeviceName:  func(_ bool, _, _ uint32) (string, error) { return "some/device", nil },
	SELinux:     func() bool { return true },
}

// TestPlans compares what file systems are made of with golden files, without
// any privilege.
func TestPlans(t *testing.T) {
	mode, id := os.FileMode(0o600), uint32(1000)
	for name, edit := range map[string]func(*specs.Spec, *Options){
		"default": func(s *specs.Spec, _ *Options) { *s = *defaultSpec("rootfs") },
		"bare":    func(s *specs.Spec, _ *Options) { s.Mounts, s.Linux = nil, nil; s.Root.Readonly = true },
		"binds": func(s *specs.Spec, _ *Options) {
			s.Mounts = append(s.Mounts, mount("/etc/resolv.conf", "", "resolv.conf", "rbind ro"), mount("/data", "", "/data", "rbind rro rnosuid rprivate"),
				mount("/missing", "", "nosuch", "bind noatime"))
		},
		"remount": func(s *specs.Spec, _ *Options) {
			s.Mounts = append(s.Mounts, mount("/t", "tmpfs", "", ""), mount("/t", "tmpfs", "", "remount size=1m nosuid"), mount("/sys", "", "", "remount bind rw"))
		},
		"readonly-dev": func(s *specs.Spec, _ *Options) {
			s.Mounts[0] = mount("/dev", "tmpfs", "", "ro")
			s.Process = &specs.Process{Terminal: true}
		},
		"copyup": func(s *specs.Spec, _ *Options) {
			s.Mounts = append(s.Mounts, mount("/run", "tmpfs", "", "tmpcopyup size=1m"))
		},
		"idmap": func(s *specs.Spec, _ *Options) {
			s.Mounts = append(s.Mounts, mount("/vol", "", "/vol", "rbind ridmap"))
			s.Mounts[len(s.Mounts)-1].UIDMappings, s.Mounts[len(s.Mounts)-1].GIDMappings = ids(0, 1000, 1), ids(0, 1000, 1)
		},
		"userns": func(s *specs.Spec, o *Options) {
			o.Namespaces |= unix.CLONE_NEWUSER
			s.Mounts = []specs.Mount{mount("/vol", "", "vol", "rbind ro"), mount("/idmapped", "", "/vol", "bind idmap")}
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/other", Type: "b", Major: 254}, {Path: "/dev/fifo", Type: "p"}}
		},
		"userns-shared": func(s *specs.Spec, o *Options) {
			o.Namespaces = o.Namespaces&^(unix.CLONE_NEWNET|unix.CLONE_NEWPID|unix.CLONE_NEWCGROUP) | unix.CLONE_NEWUSER
			s.Mounts = append(s.Mounts, mount("/proc", "proc", "", ""), mount("/sys", "sysfs", "sysfs", "ro"), mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid"))
		},
		"cgroup": func(s *specs.Spec, _ *Options) {
			s.Mounts = append(s.Mounts, mount("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid"))
		},
		"rshared": func(s *specs.Spec, _ *Options) { s.Linux.RootfsPropagation = "rshared"; s.Root.Readonly = true },
		"private": func(s *specs.Spec, _ *Options) { s.Linux.RootfsPropagation = "private" },
		"unbindable": func(s *specs.Spec, _ *Options) {
			s.Linux.RootfsPropagation = "unbindable"
			s.Mounts = append(s.Mounts, mount("/a", "", "/a", "bind unbindable"), mount("/b", "", "/b", "rbind rslave shared"))
		},
		"devices": func(s *specs.Spec, _ *Options) {
			s.Mounts = nil
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode, UID: &id}, {Path: "/x", Type: "p"}, {Path: "/dev/null", Type: "c", Major: 1, Minor: 3}}
		},
		"label": func(s *specs.Spec, _ *Options) {
			s.Linux.MountLabel = "u:r:t:s0:c1,c2"
			s.Mounts = append(s.Mounts, mount("/proc", "proc", "", ""), mount("/t", "tmpfs", "", "mode=700"), mount("/u", "tmpfs", "", `mode=700,context="a:b:c"`))
		},
		"label-long": func(s *specs.Spec, _ *Options) {
			s.Linux.MountLabel = "u:r:t:s0:c1,c2"
			long := strings.Repeat("long", 80)
			s.Mounts = append(s.Mounts, mount("/proc", "proc", "", long+" rro"), mount("/o", "overlay", "overlay", "lowerdir=/"+long+":/b"))
		},
		"overlay": func(s *specs.Spec, _ *Options) {
			s.Mounts = append(s.Mounts, mount("/o", "overlay", "overlay", "lowerdir=/"+strings.Repeat("long", 80)+":/b nosuid rro shared"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			// A /dev of its own keeps the devices out of the picture.
			s, opt := &specs.Spec{Root: &specs.Root{Path: "rootfs"}, Mounts: []specs.Mount{mount("/dev", "", "/dev", "rbind")}, Linux: &specs.Linux{}}, paperGuest
			edit(s, &opt)
			p, err := nsexec.NewProgram()
			require.NoError(t, err)
			defer p.Close()
			Compile(p, s, opt)
			require.NoError(t, p.Err())
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(golden, []byte(p.String()), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), p.String())
		})
	}
}
