package tasksvc

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// openParent opens the directory that holds path, an absolute one, without
// following any symlink, and returns the last component beside it.
func openParent(p string) (fd int, name string, err error) {
	dir, name := path.Split(p)
	fd, err = unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	return fd, name, err
}

// makeTarget opens a mount point, making directories (0755) on the way and, if
// it shall not be one itself, an empty file. It follows no symlinks. made are
// the paths it has made; if it fails none is left.
func makeTarget(target string, isDir bool) (fd int, made []string, err error) {
	defer func() {
		if err != nil {
			removeDirs(made)
			made = nil
		}
	}()
	dir, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("open /: %w", err)
	}
	names := strings.Split(target[1:], "/")
	for i, name := range names {
		here := "/" + strings.Join(names[:i+1], "/")
		wantDir := isDir || i < len(names)-1
		next, isNew, err := openOrMake(dir, name, wantDir)
		if isNew {
			made = append(made, here)
		}
		unix.Close(dir)
		if err != nil {
			return -1, made, fmt.Errorf("target %s: %w", here, err)
		}
		dir = next
	}
	return dir, made, nil
}

// openOrMake opens name in dir, making it if it is missing.
func openOrMake(dir int, name string, wantDir bool) (fd int, made bool, err error) {
	flags := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err = unix.Openat(dir, name, flags, 0)
	if err == unix.ENOENT {
		if wantDir {
			err = unix.Mkdirat(dir, name, 0o755)
		} else {
			err = unix.Mknodat(dir, name, unix.S_IFREG|0o644, 0)
		}
		if err != nil && err != unix.EEXIST {
			return -1, false, err
		}
		made = err == nil
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return -1, made, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, made, err
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFLNK:
		err = sys.Invalidf("is a symlink; name the place itself")
	case (kind == unix.S_IFDIR) != wantDir:
		err = sys.Mark(sys.ErrState, os.NewSyscallError("open", map[bool]error{true: unix.ENOTDIR, false: unix.EISDIR}[wantDir]))
	}
	if err != nil {
		unix.Close(fd)
		return -1, made, err
	}
	return fd, made, nil
}

// mountID returns the id of the mount that dirfd, or name in it, is on
// (statx(2), STATX_MNT_ID, Linux 5.8).
func mountID(dirfd int, name string) (uint64, error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	var st unix.Statx_t
	if err := unix.Statx(dirfd, name, flags, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	return st.Mnt_id, nil
}

// mountExists reports whether a mount of this id is in the daemon's namespace.
func mountExists(id uint64) bool {
	info, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return true
	}
	want := strconv.FormatUint(id, 10)
	for line := range strings.Lines(string(info)) {
		if first, _, ok := strings.Cut(line, " "); ok && first == want {
			return true
		}
	}
	return false
}
