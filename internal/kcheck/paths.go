package kcheck

import (
	"golang.org/x/sys/unix"
)

const resolveCached = 0x20 // RESOLVE_CACHED, linux/openat2.h

func pathFeatures() []Feature {
	resolves := func(flag uint64, path string) func(*env) error {
		return func(e *env) error {
			root, err := unix.Open(e.scratch, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(root)
			return expect(fd(unix.Openat2(root, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: flag})), unix.EAGAIN)
		}
	}
	return []Feature{
		{Name: "openat2 RESOLVE_IN_ROOT", Since: "5.6", Need: Required, Loses: "links in an image could lead mounts out of the container", probe: resolves(unix.RESOLVE_IN_ROOT, "/a/../../b")},
		{Name: "openat2 RESOLVE_NO_MAGICLINKS", Since: "5.6", Need: Required, Loses: "links in /proc could lead out of the container", probe: resolves(unix.RESOLVE_NO_MAGICLINKS, "a")},
		{Name: "openat2 RESOLVE_NO_SYMLINKS", Since: "5.6", Need: Required, Loses: "a planted link could be followed", probe: resolves(unix.RESOLVE_NO_SYMLINKS, "a")},
		{Name: "openat2 RESOLVE_BENEATH, NO_XDEV", Since: "5.6", Need: Used, Loses: "cgroup paths are checked by text only", probe: resolves(unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV, "a")},
		{Name: "openat2 RESOLVE_CACHED", Since: "5.12", Need: Optional, Loses: "no lookups that never block", probe: resolves(resolveCached, "a")},
		{Name: "fchmodat2", Since: "6.6", Need: Optional, Loses: "modes of links go through /proc", probe: func(e *env) error {
			return try(unix.SYS_FCHMODAT2, unix.AT_FDCWD, e.dir("a"), 0o755, unix.AT_SYMLINK_NOFOLLOW)
		}},
		{Name: "fanotify", Since: "5.1", Need: Optional, Loses: "no file monitoring by file handle", probe: func(*env) error {
			return fd(unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_REPORT_FID, unix.O_RDONLY|unix.O_CLOEXEC))
		}},
		{Name: "fanotify FAN_REPORT_PIDFD", Since: "5.15", Need: Optional, Loses: "monitors learn pids, which may be used again", probe: func(*env) error {
			return fd(unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_REPORT_PIDFD, unix.O_RDONLY|unix.O_CLOEXEC))
		}},
		{Name: "cachestat", Since: "6.5", Need: Optional, Loses: "no cheap look at the page cache", probe: func(*env) error {
			return expect(try(unix.SYS_CACHESTAT, -1, words(0, 0), make([]byte, 40), 0), unix.EBADF)
		}},
	}
}
