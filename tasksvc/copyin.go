package tasksvc

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// maxLateDirs is how many directories get their times at the end only, when
// nothing more is put into them.
const maxLateDirs = 1 << 16

// extractor puts the members of an archive below a directory of a container.
type extractor struct {
	root    *containerRoot
	dst     int    // the directory, O_PATH
	resolve uint64 // how paths below it are resolved
	owners  bool   // take owners from the archive
	tar     *tarReader
	dirs    []lateDir
}

type lateDir struct {
	name  string
	times [2]unix.Timespec
}

// copyIn extracts an archive below the directory at a path, which is made if it
// is missing. If the path is a file, the archive must hold one file, whose
// content becomes its. Files belong to the container's root unless owners is
// set: then to whom the archive says, as the container sees it.
func (r *containerRoot) copyIn(in io.Reader, name string, owners bool) error {
	clean, err := cleanPath(name)
	if err != nil {
		return err
	}
	x := &extractor{root: r, resolve: within, owners: owners, tar: &tarReader{r: in}}
	if clean == "" {
		x.resolve = inRoot // nothing is outside of it
	}
	fd, err := openat2(r.fd, clean, unix.O_PATH, inRoot)
	if err == nil {
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			defer unix.Close(fd)
			return x.overFile(fd, &st)
		}
	} else if err == unix.ENOENT {
		fd, err = mkdirAll(r.fd, clean, inRoot)
	}
	if err != nil {
		return notFound(err)
	}
	defer unix.Close(fd)
	if err := refusePseudo(fd); err != nil {
		return err
	}
	x.dst = fd
	for {
		h, err := x.tar.next()
		if err == io.EOF {
			return x.finishDirs()
		}
		if err == nil {
			err = x.extract(h)
			if err != nil {
				err = fmt.Errorf("%.256q: %w", h.name, err)
			}
		}
		if err != nil {
			return err
		}
	}
}

// overFile replaces what is in an existing file, which keeps its inode: it may
// be a mount.
func (x *extractor) overFile(fd int, st *unix.Stat_t) error {
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return sys.Invalidf("it is neither a directory nor a regular file")
	}
	if err := refusePseudo(fd); err != nil {
		return err
	}
	h, err := x.tar.next()
	if err == io.EOF {
		return sys.Invalidf("it is a file, and the archive is empty")
	}
	if err != nil {
		return err
	}
	if h.kind != tarRegular {
		return sys.Invalidf("it is a file, and the archive begins with %.64q, which is none", h.name)
	}
	f, err := os.OpenFile(procFD(fd), os.O_WRONLY|os.O_TRUNC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := x.write(f, h); err != nil {
		return err
	}
	if _, err := x.tar.next(); err != io.EOF {
		return errors.Join(err, sys.Invalidf("it is a file, and the archive holds more than one"))
	}
	return nil
}

// refusePseudo refuses what is the kernel's and no file. Links of the container's
// may lead there, and we may write what it may not.
func refusePseudo(fd int) error {
	if isPseudo(fd) {
		return sys.Invalidf("it is on a file system of the kernel's, such as procfs: nothing is copied there")
	}
	return nil
}

// split checks a member's name and returns its directory and last component. A
// name that leads upwards is refused, wherever it would end.
func split(name string) (dir, base string, err error) {
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", "", sys.Invalidf("the name leads out of the destination")
	}
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		return "", "", nil
	}
	dir, base = path.Split(clean)
	return strings.TrimSuffix(dir, "/"), base, nil
}

// escape says what EXDEV means where paths are resolved below a directory.
func escape(err error) error {
	if err == unix.EXDEV {
		return sys.Invalidf("a link on its way leads out of the destination: %w", err)
	}
	return err
}

// extract makes one member.
func (x *extractor) extract(h *tarHeader) error {
	dir, base, err := split(h.name)
	if err != nil || base == "" { // the destination itself stays as it is
		return err
	}
	parent, err := mkdirAll(x.dst, dir, x.resolve)
	if err != nil {
		return escape(err)
	}
	defer unix.Close(parent)
	if err := refusePseudo(parent); err != nil {
		return err
	}
	switch h.kind {
	case tarDir:
		return x.makeDir(parent, base, h)
	case tarRegular:
		return x.makeFile(parent, base, h)
	case tarHardLink:
		return x.makeLink(parent, base, h)
	case tarSymlink:
		err = x.replace(parent, base, func() error { return unix.Symlinkat(h.link, parent, base) })
	case tarFifo:
		err = x.replace(parent, base, func() error { return unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0) })
	case tarChar, tarBlockDev:
		return sys.Invalidf("it is a device, which is not copied into a container")
	default:
		return sys.Invalidf("members of type %q are not supported", h.kind)
	}
	if err != nil {
		return err
	}
	fd, err := openat2(parent, base, unix.O_PATH|unix.O_NOFOLLOW, within)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if kind := map[byte]uint32{tarSymlink: unix.S_IFLNK, tarFifo: unix.S_IFIFO}[h.kind]; st.Mode&unix.S_IFMT != kind {
		return sys.Mark(sys.ErrState, errors.New("somebody else has put something in its place"))
	}
	return x.metadata(fd, h)
}

// replace makes something in the place of whatever is there, unless that is a
// directory.
func (x *extractor) replace(parent int, base string, create func() error) error {
	for range 10 {
		err := create()
		if err != unix.EEXIST {
			return err
		}
		if err := unix.Unlinkat(parent, base, 0); err == unix.EISDIR || err == unix.EPERM {
			return sys.Mark(sys.ErrState, fmt.Errorf("there is a directory in its place: %w", unix.EISDIR))
		} else if err != nil && err != unix.ENOENT {
			return err
		}
	}
	return sys.Mark(sys.ErrState, errors.New("somebody else keeps making it"))
}

// makeDir makes a directory, or takes the one that is there, also by a link.
func (x *extractor) makeDir(parent int, base string, h *tarHeader) error {
	err := unix.Mkdirat(parent, base, 0o700)
	made := err == nil
	if err != nil && err != unix.EEXIST {
		return err
	}
	fd, err := openat2(parent, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, within)
	if err == unix.ENOTDIR && !made {
		// A link to a directory is as good (bin -> usr/bin), its target stays as
		// it is; anything else gives way.
		dir, _, _ := split(h.name)
		if through, err := openat2(x.dst, path.Join(dir, base), unix.O_PATH|unix.O_DIRECTORY, x.resolve); err == nil {
			unix.Close(through)
			return nil
		} else if err == unix.EXDEV {
			return escape(err)
		}
		err = x.replace(parent, base, func() error { return unix.Mkdirat(parent, base, 0o700) })
		if err == nil {
			fd, err = openat2(parent, base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, within)
		}
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	defer unix.Close(fd)
	if isPseudo(fd) { // the container's /proc, say: it is there, and that is all
		return nil
	}
	if len(x.dirs) < maxLateDirs {
		x.dirs = append(x.dirs, lateDir{h.name, timesOf(h)})
	}
	return x.metadata(fd, h)
}

// finishDirs sets the times of directories, which change as they are filled.
func (x *extractor) finishDirs() error {
	for _, d := range slices.Backward(x.dirs) {
		dir, base, err := split(d.name)
		if err != nil {
			return err
		}
		fd, err := openat2(x.dst, path.Join(dir, base), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, x.resolve)
		if err != nil {
			continue // something else by now
		}
		_ = unix.UtimesNanoAt(unix.AT_FDCWD, procFD(fd), d.times[:], 0)
		unix.Close(fd)
	}
	return nil
}

// makeFile makes a regular file. A mount in its place is written into.
func (x *extractor) makeFile(parent int, base string, h *tarHeader) error {
	fd := -1
	err := x.replace(parent, base, func() (err error) {
		fd, err = unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err == unix.EBUSY { // a mount
		var at int
		if at, err = openat2(parent, base, unix.O_PATH|unix.O_NOFOLLOW, within); err != nil {
			return escape(err)
		}
		defer unix.Close(at)
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			return errors.Join(err, unix.EBUSY)
		}
		if err := refusePseudo(at); err != nil {
			return err
		}
		fd, err = unix.Open(procFD(at), unix.O_WRONLY|unix.O_TRUNC|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	if err := x.write(f, h); err != nil {
		return err
	}
	at, err := openat2(parent, base, unix.O_PATH|unix.O_NOFOLLOW, within)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(at, &a), unix.Fstat(fd, &b)); err != nil {
		return err
	}
	if a.Dev != b.Dev || a.Ino != b.Ino {
		return sys.Mark(sys.ErrState, errors.New("somebody else has put something in its place"))
	}
	return x.metadata(at, h)
}

// write fills a file from the archive.
func (x *extractor) write(f *os.File, h *tarHeader) error {
	extents := h.extents
	if !h.sparse {
		extents = []extent{{0, h.size}}
	}
	for _, e := range extents {
		if _, err := f.Seek(e.offset, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.CopyN(f, x.tar, e.length); err != nil {
			return err
		}
	}
	if h.sparse {
		return f.Truncate(h.size)
	}
	return nil
}

// makeLink makes a hard link to a member before it, or to a file that is there.
func (x *extractor) makeLink(parent int, base string, h *tarHeader) error {
	dir, target, err := split(h.link)
	if err == nil && target == "" {
		err = sys.Invalidf("it is a link to the destination itself")
	}
	if err != nil {
		return fmt.Errorf("link to %.256q: %w", h.link, err)
	}
	fd, err := openat2(x.dst, path.Join(dir, target), unix.O_PATH|unix.O_NOFOLLOW, x.resolve)
	if err != nil {
		return fmt.Errorf("link to %.256q: %w", h.link, escape(err))
	}
	defer unix.Close(fd)
	return x.replace(parent, base, func() error { return unix.Linkat(fd, "", parent, base, unix.AT_EMPTY_PATH) })
}

// metadata sets owner, mode, extended attributes and times of what fd (O_PATH)
// is, in the order in which one does not undo the other.
func (x *extractor) metadata(fd int, h *tarHeader) error {
	uid, gid := uint32(0), uint32(0)
	if x.owners {
		uid, gid = h.uid, h.gid
	}
	hostUID, err := hostID(uid, x.root.uids)
	if err != nil {
		return err
	}
	hostGID, err := hostID(gid, x.root.gids)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(fd, "", int(hostUID), int(hostGID), unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("set its owner: %w", err)
	}
	times := timesOf(h)
	if h.kind == tarSymlink {
		return nil // no mode; and its times need a path that does not follow it
	}
	name := procFD(fd)
	if err := unix.Chmod(name, h.mode&0o7777); err != nil {
		return fmt.Errorf("set its mode: %w", err)
	}
	for _, key := range slices.Sorted(maps.Keys(h.xattrs)) {
		if !keptXattr(key) {
			continue
		}
		if err := unix.Setxattr(name, key, []byte(h.xattrs[key]), 0); err != nil && err != unix.EOPNOTSUPP {
			return fmt.Errorf("set extended attribute %s: %w", key, err)
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, times[:], 0); err != nil {
		return fmt.Errorf("set its times: %w", err)
	}
	return nil
}

func timesOf(h *tarHeader) [2]unix.Timespec {
	mtime := unix.NsecToTimespec(h.mtime.UnixNano())
	return [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, mtime}
}
