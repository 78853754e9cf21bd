package kcheck

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hostname is that of the default exercise.
const hostname = "kcheck"

// plainExercises is the default container: most of what the kernel must have
// shows in it.
func plainExercises() []Exercise {
	return []Exercise{
		{
			Name: "default",
			Features: []string{"clone3", "clone3 CLONE_CLEAR_SIGHAND", "close_range", "CLOSE_RANGE_CLOEXEC", "pid namespace", "network namespace", "ipc namespace",
				"uts namespace", "mount namespace", "pivot_root onto itself", "fsopen, fsconfig, fsmount", "move_mount by descriptors", "mount_setattr",
				"open_tree OPEN_TREE_CLONE", "openat2 RESOLVE_IN_ROOT", "no_new_privs", "mqueue"},
			Edit: func(s *specs.Spec, _ Site) bool {
				s.Hostname = hostname
				s.Linux.Sysctl = map[string]string{"kernel.msgmax": "1234"}
				s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/proc/version") // every kernel has it
				// /link leads to /target by an absolute path.
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/link/in", Type: "tmpfs", Source: "tmpfs"})
				return true
			},
			inside: lookAround,
		},
		{
			Name: "cgroup namespace", Features: []string{"clone3 CLONE_INTO_CGROUP", "cgroup namespace", "cgroup2"},
			inside: func() []Sight {
				own := text("/proc/self/cgroup")
				_, err := os.Stat("/sys/fs/cgroup/cgroup.procs")
				return []Sight{
					saw("clone3 CLONE_INTO_CGROUP", own == "0::/" || strings.HasSuffix(own, "\n0::/"), "/proc/self/cgroup says %q", lastLine(own)),
					saw("cgroup namespace", own == "0::/" || strings.HasSuffix(own, "\n0::/"), "/proc/self/cgroup says %q", lastLine(own)),
					saw("cgroup2", err == nil, "/sys/fs/cgroup/cgroup.procs: %s", outcome(err)),
				}
			},
		},
		{
			Name: "keyring", Features: []string{"session keyrings"},
			inside: func() []Sight {
				d, err := unix.KeyctlString(unix.KEYCTL_DESCRIBE, unix.KEY_SPEC_SESSION_KEYRING)
				return []Sight{saw("session keyrings", err == nil && strings.Contains(d, ";_ses."), "the session keyring is %q, %s", d[strings.LastIndexByte(d, ';')+1:], outcome(err))}
			},
		},
		{
			Name: "image", Features: []string{"overlay", "erofs"},
			Edit: func(_ *specs.Spec, at Site) bool { return at.Erofs != "" },
			inside: func() []Sight {
				st := statfs("/")
				_, err := os.Stat("/vminitctl")
				return []Sight{
					saw("overlay", st.Type == unix.OVERLAYFS_SUPER_MAGIC, "/ has file system type %#x", st.Type),
					saw("erofs", err == nil, "a file of the image: %s", outcome(err)),
				}
			},
		},
	}
}

func lookAround() []Sight {
	pid, host := os.Getpid(), ""
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		host = unix.ByteSliceToString(u.Nodename[:])
	}
	shm, in := statfs("/dev/shm"), statfs("/target/in")
	const strict = unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
	var mask unix.Stat_t
	err := unix.Stat("/proc/version", &mask)
	interfaces, loUp := networkDevices()
	strangers := strangeMounts()
	fds := openFiles()
	ignored := field("/proc/self/status", "SigIgn:")
	return []Sight{
		saw("clone3", true, "it runs"),
		saw("clone3 CLONE_CLEAR_SIGHAND", ignored == "0000000000000000", "ignored signals: %s", ignored),
		saw("close_range", len(fds) == 0, "open files beside stdio: %q", fds),
		saw("CLOSE_RANGE_CLOEXEC", len(fds) == 0, "open files beside stdio: %q", fds),
		saw("pid namespace", pid == 1, "pid %d", pid),
		saw("network namespace", slices.Equal(interfaces, []string{"lo"}) && loUp, "interfaces %q, lo up: %t", interfaces, loUp),
		saw("ipc namespace", text("/proc/sys/kernel/msgmax") == "1234", "kernel.msgmax is %s", text("/proc/sys/kernel/msgmax")),
		saw("uts namespace", host == hostname, "hostname %q", host),
		saw("mount namespace", strangers == nil, "mounts that the config does not have: %q", strangers),
		saw("pivot_root onto itself", strangers == nil, "mounts that the config does not have: %q", strangers),
		saw("fsopen, fsconfig, fsmount", shm.Type == unix.TMPFS_MAGIC && shm.Blocks*uint64(shm.Bsize) == 64<<20, "/dev/shm: type %#x, %d bytes", shm.Type, shm.Blocks*uint64(shm.Bsize)),
		saw("move_mount by descriptors", shm.Flags&strict == strict, "/dev/shm: flags %#x", shm.Flags),
		saw("mount_setattr", statfs("/proc/sys").Flags&unix.ST_RDONLY != 0, "/proc/sys: flags %#x", statfs("/proc/sys").Flags),
		saw("open_tree OPEN_TREE_CLONE", err == nil && mask.Mode&unix.S_IFMT == unix.S_IFCHR && mask.Rdev == unix.Mkdev(1, 3), "/proc/version, masked: device %d:%d, %s", unix.Major(mask.Rdev), unix.Minor(mask.Rdev), outcome(err)),
		saw("openat2 RESOLVE_IN_ROOT", in.Type == unix.TMPFS_MAGIC, "/target/in, mounted as /link/in: type %#x", in.Type),
		saw("no_new_privs", field("/proc/self/status", "NoNewPrivs:") == "1", "NoNewPrivs: %s", field("/proc/self/status", "NoNewPrivs:")),
		saw("mqueue", statfs("/dev/mqueue").Type == 0x19800202, "/dev/mqueue: type %#x", statfs("/dev/mqueue").Type),
	}
}

// strangeMounts are mount points below directories where neither the default
// config nor an exercise has one.
func strangeMounts() (list []string) {
	for line := range strings.Lines(text("/proc/self/mountinfo")) {
		at := strings.Fields(line)[4]
		top, _, _ := strings.Cut(strings.TrimPrefix(at, "/"), "/")
		if !slices.Contains([]string{"", "proc", "dev", "sys", "run", "target", "rec", "nolinks", "proc2", "mapped", "mapped-image"}, top) {
			list = append(list, at)
		}
	}
	return list
}

// openFiles are those that neither stdio nor Go's runtime has.
func openFiles() (list []string) {
	all, _ := os.ReadDir("/proc/self/fd")
	for _, e := range all {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if len(e.Name()) == 1 && e.Name() < "3" || errors.Is(err, fs.ErrNotExist) || to == "anon_inode:[eventpoll]" || to == "anon_inode:[eventfd]" {
			continue
		}
		if strings.HasPrefix(to, "/sys/fs/cgroup/") { // Go's runtime looks how many processors it may use
			continue
		}
		if dir, _ := filepath.Match("/proc/*/fd", to); dir { // the directory itself
			continue
		}
		list = append(list, to)
	}
	return list
}

// networkDevices are those of /proc/net/dev; loUp says whether lo is up.
func networkDevices() (names []string, loUp bool) {
	for line := range strings.Lines(text("/proc/self/net/dev")) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	n, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return names, false
	}
	defer unix.Close(n)
	req, err := unix.NewIfreq("lo")
	if err == nil {
		err = unix.IoctlIfreq(n, unix.SIOCGIFFLAGS, req)
	}
	return names, err == nil && req.Uint16()&unix.IFF_UP != 0
}

// text is a file without the newline at its end, "" if it cannot be read.
func text(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimSpace(string(b))
}

func lastLine(s string) string { return s[strings.LastIndexByte(s, '\n')+1:] }

// field is the first word after a label at the start of a line.
func field(path, label string) string {
	for line := range strings.Lines(text(path)) {
		if rest, ok := strings.CutPrefix(line, label); ok {
			return strings.Fields(rest + " -")[0]
		}
	}
	return ""
}

func statfs(path string) (st unix.Statfs_t) {
	_ = unix.Statfs(path, &st) // zero if it is not there, which is none of what is looked for
	return st
}

// outcome is "ok" or the error's text.
func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return err.Error()
}
