package kcheck

import (
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountExercises mount something the default container has not.
func mountExercises() []Exercise {
	add := func(m specs.Mount) func(*specs.Spec, Site) bool {
		return func(s *specs.Spec, _ Site) bool {
			s.Mounts = append(s.Mounts, m)
			return true
		}
	}
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	owned := func(feature, path string) func() []Sight {
		return func() []Sight {
			var st unix.Stat_t
			err := unix.Stat(path, &st)
			return []Sight{saw(feature, err == nil && st.Uid == 100000, "owner of what root owns: %d, %s", st.Uid, outcome(err))}
		}
	}
	return []Exercise{
		{
			Name: "recursive options", Features: []string{"mount_setattr AT_RECURSIVE", "open_tree AT_RECURSIVE"},
			Edit: add(specs.Mount{Destination: "/rec", Type: "bind", Source: "/sys", Options: []string{"rbind", "rro"}}),
			inside: func() []Sight {
				top, sub := statfs("/rec"), statfs("/rec/fs/cgroup")
				return []Sight{
					saw("mount_setattr AT_RECURSIVE", top.Flags&sub.Flags&unix.ST_RDONLY != 0, "flags of the mount %#x, of one below %#x", top.Flags, sub.Flags),
					saw("open_tree AT_RECURSIVE", sub.Type != top.Type, "types of the mount %#x, of one below %#x", top.Type, sub.Type),
				}
			},
		},
		{
			Name: "nosymfollow", Features: []string{"MOUNT_ATTR_NOSYMFOLLOW"},
			Edit: add(specs.Mount{Destination: "/nolinks", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosymfollow"}}),
			inside: func() []Sight {
				err := os.Symlink("/proc/uptime", "/nolinks/l")
				if err == nil {
					_, err = os.ReadFile("/nolinks/l")
				}
				return []Sight{saw("MOUNT_ATTR_NOSYMFOLLOW", plain(err) == unix.ELOOP, "reading through a link: %s", outcome(err))}
			},
		},
		{
			Name: "proc subset", Features: []string{"proc subset=pid"},
			Edit: add(specs.Mount{Destination: "/proc2", Type: "proc", Source: "proc", Options: []string{"subset=pid"}}),
			inside: func() []Sight {
				_, self := os.Stat("/proc2/self/status")
				_, other := os.Stat("/proc2/meminfo")
				return []Sight{saw("proc subset=pid", self == nil && plain(other) == unix.ENOENT, "self: %s; meminfo: %s", outcome(self), outcome(other))}
			},
		},
		{
			Name: "idmapped tmpfs", Features: []string{"idmapped tmpfs"},
			Edit:   add(specs.Mount{Destination: "/mapped", Type: "tmpfs", Source: "tmpfs", Options: []string{"idmap"}, UIDMappings: maps, GIDMappings: maps}),
			inside: owned("idmapped tmpfs", "/mapped"),
		},
		{
			Name: "idmapped erofs", Features: []string{"idmapped mounts", "idmapped erofs"},
			Edit: func(s *specs.Spec, at Site) bool {
				if at.Erofs == "" {
					return false
				}
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/mapped-image", Type: "erofs", Source: at.Erofs, Options: []string{"ro", "idmap"}, UIDMappings: maps, GIDMappings: maps})
				return true
			},
			inside: func() []Sight {
				return append(owned("idmapped erofs", "/mapped-image")(), owned("idmapped mounts", "/mapped-image")()...)
			},
		},
	}
}
