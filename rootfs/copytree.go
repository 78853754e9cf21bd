package rootfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// What a copy may come to at most. The memory is the daemon's until the
// container's processes touch it.
const (
	maxCopyBytes   = 256 << 20
	maxCopyEntries = 100_000
	maxCopyDepth   = 200 // directories; each is two fds while it is open
)

// copier copies a directory with all that is below on one mount: modes,
// owners, times, links, extended attributes, devices, holes.
//
// The source may be hostile and may change meanwhile: every name is opened
// below a directory fd without following links or crossing mounts, and looked
// at again once it is open. The target is seen by nobody else.
type copier struct {
	deadline time.Time
	root     int // the target
	bytes    int64
	entries  int
	links    map[inode]string // files with several names -> their name in the target
}

type inode struct{ dev, ino uint64 }

// ownerAndMode overrides what is copied, where set.
type ownerAndMode struct{ uid, gid, mode *uint32 }

// copyRoot copies what is in the directory from, and its own attributes, to the
// root of a file system. Both are O_PATH fds.
func (c *copier) copyRoot(from, to int, keep ownerAndMode) error {
	src, err := openDir(from, ".")
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := openDir(to, ".")
	if err != nil {
		return err
	}
	defer dst.Close()
	c.root = int(dst.Fd())
	return c.copyDir(src, dst, "", 0, keep)
}

const (
	openSource = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	below      = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV
)

func openDir(dir int, name string) (*os.File, error) {
	fd, err := openat2(dir, name, openSource|unix.O_DIRECTORY, below)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// copyDir copies the contents first: the directory's own times are among its
// attributes.
func (c *copier) copyDir(src, dst *os.File, where string, depth int, keep ownerAndMode) error {
	if depth > maxCopyDepth {
		return sys.Invalidf("%s: more than %d directories deep", where, maxCopyDepth)
	}
	for {
		names, err := src.Readdirnames(256)
		for _, name := range names {
			if err := c.copyEntry(src, dst, name, path.Join(where, name), depth); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: %w", where, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	for _, o := range []struct{ field, keep *uint32 }{{&st.Uid, keep.uid}, {&st.Gid, keep.gid}, {&st.Mode, keep.mode}} {
		if o.keep != nil {
			*o.field = *o.keep
		}
	}
	return c.finish(src, dst, &st, where)
}

// copyEntry copies one name. What has gone meanwhile is left out.
func (c *copier) copyEntry(src, dst *os.File, name, where string, depth int) error {
	if c.entries++; c.entries > maxCopyEntries {
		return sys.Invalidf("there are more than %d files", maxCopyEntries)
	}
	if time.Now().After(c.deadline) {
		return fmt.Errorf("not done in time: %w", os.ErrDeadlineExceeded)
	}
	var st unix.Stat_t
	err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = c.enterDir(src, dst, name, where, depth)
		case unix.S_IFREG:
			err = c.copyFile(src, dst, name, where)
		case unix.S_IFLNK:
			err = copyLink(int(src.Fd()), int(dst.Fd()), name, &st)
		default:
			err = copyNode(int(dst.Fd()), name, &st)
		}
	}
	if errors.Is(err, errGone) {
		return nil
	}
	return explain(where, &st, err)
}

// errGone: the source is not what it was a moment ago.
var errGone = errors.New("file has changed while it was copied")

// placed is an error that names its file already.
type placed struct{ error }

func (p placed) Unwrap() error { return p.error }

// explain names the file and says what to do.
func explain(where string, st *unix.Stat_t, err error) error {
	switch {
	case err == nil || errors.As(err, new(placed)):
		return err
	case errors.Is(err, unix.ENOSPC):
		err = fmt.Errorf("the tmpfs is too small, make its size or nr_inodes larger: %w", err)
	case errors.Is(err, unix.EOVERFLOW) || errors.Is(err, unix.EINVAL):
		err = fmt.Errorf("%w (are %d and %d, its owner and group, mapped in the container's user namespace?)", err, st.Uid, st.Gid)
	}
	return placed{fmt.Errorf("%s: %w", where, err)}
}

func (c *copier) enterDir(src, dst *os.File, name, where string, depth int) error {
	if err := unix.Mkdirat(int(dst.Fd()), name, 0o700); err != nil {
		return err
	}
	to, err := openDir(int(dst.Fd()), name)
	if err != nil {
		return err
	}
	defer to.Close()
	from, err := openDir(int(src.Fd()), name)
	if gone(err) || err == unix.EXDEV { // or a mount point: stays an empty directory
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close()
	return c.copyDir(from, to, where, depth+1, ownerAndMode{})
}

// gone: errors of opening what has been removed or replaced meanwhile.
func gone(err error) bool {
	return err == unix.ENOENT || err == unix.ELOOP || err == unix.ENOTDIR || err == unix.ENXIO
}

func (c *copier) copyFile(src, dst *os.File, name, where string) error {
	fd, err := openat2(int(src.Fd()), name, openSource, below)
	if gone(err) {
		return errGone
	}
	if err != nil {
		return err
	}
	from := os.NewFile(uintptr(fd), name)
	defer from.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errGone
	}
	id := inode{uint64(st.Dev), st.Ino}
	if first, ok := c.links[id]; ok {
		return unix.Linkat(c.root, first, int(dst.Fd()), name, 0)
	}
	out, err := unix.Openat(int(dst.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(out), name)
	defer to.Close()
	// The owner first: nobody is to read what is not theirs.
	if err := unix.Fchown(out, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := c.copyData(from, to, st.Size); err != nil {
		return err
	}
	if st.Nlink > 1 {
		c.links[id] = where
	}
	return c.finish(from, to, &st, where)
}

// copyData copies what is not a hole (SEEK_DATA, lseek(2)).
func (c *copier) copyData(from, to *os.File, size int64) error {
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(from.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO { // a hole up to the end
			break
		}
		var end int64
		if err == nil {
			end, err = unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		}
		if err != nil { // a file system that does not know
			start, end = off, size
		}
		if end = min(end, size); end <= start {
			break
		}
		if c.bytes += end - start; c.bytes > maxCopyBytes {
			return sys.Invalidf("there are more than %d MiB to copy", maxCopyBytes>>20)
		}
		if _, err := io.Copy(io.NewOffsetWriter(to, start), io.NewSectionReader(from, start, end-start)); err != nil {
			return err
		}
		if time.Now().After(c.deadline) {
			return fmt.Errorf("not done in time: %w", os.ErrDeadlineExceeded)
		}
		off = end
	}
	return to.Truncate(size)
}

// finish gives a file or directory its attributes: owner, then what a change
// of owner takes away, then times.
func (c *copier) finish(from, to *os.File, st *unix.Stat_t, where string) error {
	fd := int(to.Fd())
	err := unix.Fchown(fd, int(st.Uid), int(st.Gid))
	if err == nil {
		err = unix.Fchmod(fd, st.Mode&0o7777)
	}
	if err == nil {
		err = copyXattrs(int(from.Fd()), fd)
	}
	if err == nil {
		err = unix.UtimesNanoAt(fd, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH)
	}
	return explain(where, st, err)
}

func copyLink(src, dst int, name string, st *unix.Stat_t) error {
	var buf [maxPath]byte
	n, err := unix.Readlinkat(src, name, buf[:])
	if gone(err) || err == unix.EINVAL {
		return errGone
	}
	if err == nil {
		err = unix.Symlinkat(string(buf[:n]), dst, name)
	}
	if err == nil {
		err = unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyNode makes a fifo, socket or device. Whether a device may be used is the
// business of the container's device filter.
func copyNode(dst int, name string, st *unix.Stat_t) error {
	if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
		return err
	}
	if err := unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil { // no link: it was made here
		return err
	}
	return unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyXattrs copies extended attributes (xattr(7)), access control lists among
// them. What the tmpfs of this kernel does not take (user.* before Linux 6.6)
// is left out, and so is what belongs to a file system below.
func copyXattrs(from, to int) error {
	names, err := readXattr(func(b []byte) (int, error) { return unix.Flistxattr(from, b) })
	if err != nil {
		return nil // the file system has none
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if name == "" || strings.Contains(name, ".overlay.") {
			continue
		}
		value, err := readXattr(func(b []byte) (int, error) { return unix.Fgetxattr(from, name, b) })
		if err != nil {
			continue // gone again
		}
		switch err := unix.Fsetxattr(to, name, value, 0); err {
		case nil, unix.EOPNOTSUPP, unix.EPERM:
		default:
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return nil
}

// readXattr reads a list or value, which the kernel bounds to 64 KiB.
func readXattr(read func([]byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 512)
	n, err := read(buf)
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10)
		n, err = read(buf)
	}
	return buf[:max(0, n)], err
}
