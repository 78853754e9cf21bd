package tasksvc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

const (
	maxTreeLevels = 1000    // directories that are open at once
	maxLinked     = 1 << 16 // files with more than one link that are remembered
	maxXattrs     = 64 << 10
	maxPseudoFile = 1 << 20 // of a file of procfs or the like, whose size nobody knows
)

// copier writes a tree of a container as an archive.
type copier struct {
	root   *containerRoot
	tar    *tarWriter
	linked map[inode]string // under which name a file is in the archive already
}

type inode struct{ dev, ino uint64 }

// copyOut writes the file or directory at a path to w; its name in the archive
// is the last component ("./" for the root). A link is followed only if the path
// ends with a slash. noWalk leaves out what is in a directory.
func (r *containerRoot) copyOut(w io.Writer, name string, noWalk bool) error {
	clean, err := cleanPath(name)
	if err != nil {
		return err
	}
	flags := uint64(unix.O_PATH | unix.O_NOFOLLOW)
	if strings.HasSuffix(name, "/") {
		flags = unix.O_PATH | unix.O_DIRECTORY
	}
	fd, err := openat2(r.fd, clean, flags, inRoot)
	if err != nil {
		return notFound(err)
	}
	defer unix.Close(fd)
	c := &copier{root: r, tar: &tarWriter{w: w}, linked: map[inode]string{}}
	base := path.Base(clean)
	if clean == "" {
		base = "."
	}
	if err := c.add(fd, "", base, !noWalk, 0); err != nil {
		return err
	}
	return c.tar.close()
}

// add writes one file, and what is below it. link is a path of it that does not
// follow it if it is a symbolic link, "" if there is none.
func (c *copier) add(fd int, link, name string, walk bool, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	h := &tarHeader{name: name, mode: st.Mode & 0o7777, mtime: time.Unix(st.Mtim.Unix()),
		uid: fromHost(st.Uid, c.root.uids), gid: fromHost(st.Gid, c.root.gids)}
	pseudo := isPseudo(fd)
	var err error
	if !pseudo {
		xattrsOf := link
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			xattrsOf = procFD(fd)
		}
		if h.xattrs, err = readXattrs(xattrsOf, st.Mode&unix.S_IFMT == unix.S_IFLNK); err != nil {
			return fmt.Errorf("%s: extended attributes: %w", name, err)
		}
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFDIR && st.Nlink > 1 && !pseudo {
		key := inode{st.Dev, st.Ino}
		if first, ok := c.linked[key]; ok {
			h.kind, h.link = tarHardLink, first
			return c.tar.header(h)
		}
		if len(c.linked) < maxLinked {
			c.linked[key] = name
		}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.addFile(fd, h, &st, pseudo)
	case unix.S_IFLNK:
		buf := make([]byte, maxTarName)
		n, err := unix.Readlinkat(fd, "", buf)
		if err != nil {
			return fmt.Errorf("%s: read link: %w", name, err)
		}
		h.kind, h.link = tarSymlink, string(buf[:n])
	case unix.S_IFIFO:
		h.kind = tarFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.kind, h.major, h.minor = tarChar, unix.Major(st.Rdev), unix.Minor(st.Rdev)
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.kind = tarBlockDev
		}
	case unix.S_IFSOCK:
		return nil // tar has no sockets, and nobody misses them
	case unix.S_IFDIR:
		h.kind = tarDir
		h.name = name + "/"
		if err := c.tar.header(h); err != nil {
			return err
		}
		if !walk || pseudo && depth > 0 { // a tree is not asked for the kernel's sake
			return nil
		}
		return c.addDir(fd, name, depth)
	}
	return c.tar.header(h)
}

// addDir writes what is in a directory, in no particular order.
func (c *copier) addDir(fd int, name string, depth int) error {
	if depth >= maxTreeLevels {
		return sys.Invalidf("%.64s...: directories nested deeper than %d", name, maxTreeLevels)
	}
	dir, err := os.Open(procFD(fd))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer dir.Close()
	prefix := name + "/"
	if name == "." {
		prefix = ""
	}
	for {
		names, err := dir.Readdirnames(1000)
		for _, entry := range names {
			child, err := unix.Openat(int(dir.Fd()), entry, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err == unix.ENOENT {
				continue // gone since
			}
			if err == nil {
				err = c.add(child, procFD(int(dir.Fd()))+"/"+entry, prefix+entry, true, depth+1)
				unix.Close(child)
			} else {
				err = fmt.Errorf("%s%s: %w", prefix, entry, err)
			}
			if err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
}

// addFile writes a regular file. One that shrinks meanwhile is filled up with
// zeros, one that grows is cut off: the archive stays whole.
func (c *copier) addFile(fd int, h *tarHeader, st *unix.Stat_t, pseudo bool) error {
	f, err := os.OpenFile(procFD(fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", h.name, err)
	}
	defer f.Close()
	h.kind, h.size = tarRegular, st.Size
	if pseudo {
		data, err := io.ReadAll(io.LimitReader(f, maxPseudoFile))
		if err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
		h.size = int64(len(data))
		if err := c.tar.header(h); err != nil {
			return err
		}
		_, err = c.tar.Write(data)
		return err
	}
	extents := []extent{{0, st.Size}}
	if st.Blocks*512 < st.Size {
		if found, ok := dataExtents(f, st.Size); ok {
			h.sparse, h.extents, extents = true, found, found
		}
	}
	if err := c.tar.header(h); err != nil {
		return err
	}
	for _, e := range extents {
		n, err := io.Copy(c.tar, io.NewSectionReader(f, e.offset, e.length))
		if err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
		if _, err := io.CopyN(c.tar, zeros{}, e.length-n); err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
	}
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// dataExtents finds where a file has data (SEEK_DATA, lseek(2), Linux 3.1). ok is
// false if there is no hole or too many.
func dataExtents(f *os.File, size int64) (list []extent, ok bool) {
	for at := int64(0); at < size; {
		data, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // a hole up to the end
			return list, true
		}
		if err != nil {
			return nil, false
		}
		hole, err := f.Seek(data, unix.SEEK_HOLE)
		if err != nil || len(list) == maxTarExtents {
			return nil, false
		}
		hole = min(hole, size)
		if data >= size {
			return list, true
		}
		if data == 0 && hole == size {
			return nil, false
		}
		list = append(list, extent{data, hole - data})
		at = hole
	}
	return list, true
}

// keptXattr reports whether an extended attribute goes along. What belongs to
// the security module or the overlay of one machine does not belong on another.
func keptXattr(name string) bool {
	return strings.HasPrefix(name, "user.") || name == "security.capability" ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// readXattrs reads those that go along of the file at a path.
func readXattrs(name string, isLink bool) (map[string]string, error) {
	list, get := unix.Listxattr, unix.Getxattr
	if isLink {
		list, get = unix.Llistxattr, unix.Lgetxattr
	}
	if name == "" {
		return nil, nil
	}
	buf := make([]byte, maxXattrs)
	n, err := list(name, buf)
	if err == unix.EOPNOTSUPP || err == unix.EPERM || err == unix.ENOENT {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all map[string]string
	for key := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if !keptXattr(key) {
			continue
		}
		n, err := get(name, key, buf)
		if err == unix.ENODATA {
			continue // gone since
		}
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = map[string]string{}
		}
		all[key] = string(buf[:n])
	}
	return all, nil
}

// pseudoFS are the file systems that are the kernel's and not files
// (linux/magic.h).
var pseudoFS = []int64{unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC,
	unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.BINFMTFS_MAGIC, unix.NSFS_MAGIC, 0x19800202 /* mqueue */}

func isPseudo(fd int) bool {
	var st unix.Statfs_t
	return unix.Fstatfs(fd, &st) == nil && slices.Contains(pseudoFS, int64(st.Type))
}
