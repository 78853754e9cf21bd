package rootimage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// tree is a directory as it will be in the image.
type tree struct {
	nodes  []*node // in the order of the image, the root first
	mounts []string

	// Set by layout.
	metaSize int64 // bytes, superblock included, whole blocks
	blocks   int64 // of the image
	dataSize int64 // bytes of file contents, for progress
}

// node is one inode.
type node struct {
	path         string // on the host
	mode         uint32
	uid, gid     uint32
	nlink        uint32
	size         int64
	mtime        unix.Timespec
	major, minor uint32
	target       string  // of a symbolic link
	xattrs       []xattr // sorted by name
	entries      []entry // of a directory, sorted by name, . and .. included

	// Set by layout.
	offset int64 // of the inode in the image
	start  int64 // first block of its data
	full   int64 // bytes of data from there on
	tail   int64 // bytes of data right after the inode
}

// entry is a name in a directory.
type entry struct {
	name string
	node *node
}

type xattr struct{ name, value string }

func (n *node) kind() uint32 { return n.mode & unix.S_IFMT }

// inodeKey tells hard links.
type inodeKey struct{ dev, ino uint64 }

// scanner walks the directory.
type scanner struct {
	tree
	ctx   context.Context
	opts  Options
	top   string
	dev   uint64 // of the directory's own file system
	links map[inodeKey]*node
}

// scan reads the metadata of everything in dir.
func scan(ctx context.Context, dir string, o Options) (*tree, error) {
	if o.Owner == OwnerAuto {
		o.Owner = OwnerKeep
		if os.Geteuid() != 0 {
			o.Owner = OwnerRoot
		}
	}
	top, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("root file system: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(top, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: top, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, sys.Invalidf("root file system %s: not a directory", dir)
	}
	s := &scanner{ctx: ctx, opts: o, top: top, dev: st.Dev, links: make(map[inodeKey]*node)}
	root, err := s.node(top, &st)
	if err != nil {
		return nil, err
	}
	if err := s.directory(root, root, st.Dev); err != nil {
		return nil, err
	}
	return &s.tree, nil
}

// node makes the inode for a path and appends it to the tree.
func (s *scanner) node(p string, st *unix.Stat_t) (*node, error) {
	n := &node{
		path: p, mode: st.Mode, uid: st.Uid, gid: st.Gid, nlink: 1, size: st.Size, mtime: st.Mtim,
		major: unix.Major(st.Rdev), minor: unix.Minor(st.Rdev),
	}
	if s.opts.Owner == OwnerRoot {
		n.uid, n.gid = 0, 0
	}
	if !s.opts.Mtime.IsZero() {
		n.mtime = unix.NsecToTimespec(s.opts.Mtime.UnixNano())
	}
	var err error
	if n.kind() == unix.S_IFLNK {
		if n.target, err = os.Readlink(p); err != nil {
			return nil, err
		}
		n.size = int64(len(n.target))
	}
	if n.xattrs, err = readXattrs(p); err != nil {
		return nil, err
	}
	s.nodes = append(s.nodes, n)
	return n, nil
}

// directory fills in the entries of n, which is on file system dev.
func (s *scanner) directory(n, parent *node, dev uint64) error {
	n.nlink = 2
	n.entries = []entry{{".", n}, {"..", parent}}
	if dev != s.dev {
		s.mounts = append(s.mounts, strings.TrimPrefix(n.path, s.top+"/"))
		return nil
	}
	names, err := readNames(n.path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		child, err := s.child(n, name)
		if err != nil {
			return err
		}
		n.entries = append(n.entries, entry{name, child})
	}
	// In the order of the bytes, as the kernel's binary search wants it. The
	// dots come first only as long as no name starts with a lesser byte.
	slices.SortFunc(n.entries, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	return nil
}

// child looks at one name in the directory n.
func (s *scanner) child(n *node, name string) (*node, error) {
	p := filepath.Join(n.path, name)
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: p, Err: err}
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	key := inodeKey{st.Dev, st.Ino}
	if other := s.links[key]; other != nil {
		other.nlink++
		return other, nil
	}
	child, err := s.node(p, &st)
	if err != nil {
		return nil, err
	}
	if isDir {
		n.nlink++
		return child, s.directory(child, n, st.Dev)
	}
	if st.Nlink > 1 {
		s.links[key] = child
	}
	return child, nil
}

func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

// hostLabels belong to the host's security policy and mean nothing in a guest.
var hostLabels = []string{"security.selinux", "security.SMACK64", "security.ima", "security.evm"}

// readXattrs reads the extended attributes that EROFS can hold.
func readXattrs(p string) ([]xattr, error) {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX and XATTR_SIZE_MAX, xattr(7)
	size, err := unix.Llistxattr(p, buf)
	if errors.Is(err, unix.EOPNOTSUPP) || size == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: p, Err: err}
	}
	var list []xattr
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:size]), "\x00"), "\x00") {
		if _, _, ok := splitXattr(name); !ok || slices.Contains(hostLabels, name) {
			continue
		}
		n, err := unix.Lgetxattr(p, name, buf)
		if errors.Is(err, unix.ENODATA) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + name, Path: p, Err: err}
		}
		list = append(list, xattr{name, string(buf[:n])})
	}
	slices.SortFunc(list, func(a, b xattr) int { return cmp.Compare(a.name, b.name) })
	return list, nil
}
