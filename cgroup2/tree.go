package cgroup2

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Tree is the subtree of the unified hierarchy in which all container cgroups
// live. Its methods are safe for concurrent use.
//
// Lock order: Cgroup.devMu before filterCache.mu; the others are never held
// together.
type Tree struct {
	path string // below the mountpoint, with a leading slash, for messages
	dir  dir

	// mu guards live and serialises the making and removing of directories:
	// an empty parent must not be removed while a child is being made in it.
	// It also guards Cgroup.deleted.
	mu   sync.Mutex
	live map[string]bool // path of every cgroup handed out and not yet deleted

	oomMu  sync.Mutex
	oom    *oomWatcher // made by the first WatchOOM; guarded by oomMu
	closed bool        // guarded by oomMu

	filters filterCache
	claim   *os.File // the lock of [Tree.Claim], which comes before other use

	sizesOnce sync.Once // makes sizes
	sizes     []string  // see pageSizes
}

// OpenTree opens the directory name below mountpoint, a cgroup2 mount such as
// /sys/fs/cgroup, making it if needed, and enables in it every controller that
// the mountpoint's cgroup can hand down. A controller that cannot be enabled
// (busy, or claimed by a cgroup v1 hierarchy) is left out; a limit that needs
// it fails later, by name, in [Cgroup.Apply].
//
// The caller closes the tree when no cgroup of it is in use any more.
func OpenTree(mountpoint, name string) (*Tree, error) {
	parts, err := splitPath(name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(mountpoint, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open cgroup mount %s: %w", mountpoint, err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		unix.Close(fd)
		return nil, sys.Unsupportedf("%s is not a cgroup2 mount: mount one with `mount -t cgroup2 none %s`", mountpoint, mountpoint)
	}
	delegate(fd)
	for i, part := range parts {
		child, _, err := makeDir(fd, part)
		unix.Close(fd)
		if err != nil {
			return nil, fmt.Errorf("make cgroup %s: %w", path.Join(mountpoint, path.Join(parts[:i+1]...)), err)
		}
		fd = child
		delegate(fd)
	}
	d, err := newDir(fd, path.Join(mountpoint, name))
	if err != nil {
		return nil, err
	}
	return &Tree{path: "/" + path.Join(parts...), dir: d, live: map[string]bool{}}, nil
}

// Controllers returns the controllers that cgroups in the tree have, sorted.
func (t *Tree) Controllers() ([]string, error) {
	data, err := t.dir.read("cgroup.subtree_control")
	if err != nil {
		return nil, fmt.Errorf("read cgroup.subtree_control of cgroup %s: %w", t.path, err)
	}
	names := strings.Fields(string(data))
	slices.Sort(names)
	return names, nil
}

// Close releases what the tree holds, its claim included, and ends all OOM reports. Cgroups made
// from it stay on disk.
func (t *Tree) Close() error {
	t.oomMu.Lock()
	t.closed = true
	w := t.oom
	t.oomMu.Unlock()
	if w != nil {
		w.file.Close()
	}
	t.filters.close()
	t.claim.Close() // nil if there is none
	return t.dir.file.Close()
}

// Create makes the cgroup for one container. cgroupsPath is the one of the
// runtime specification, always relative to the tree (see splitPath for what
// is refused and for systemd's notation); missing parents are made, with all
// controllers enabled.
//
// It fails with [sys.ErrInvalid] for a path that is malformed or lies inside
// another container's cgroup, and with [sys.ErrExists] when the directory is
// there already, and with [sys.ErrState] when its parent belongs to a threaded
// subtree. On failure nothing is left behind. The caller ends with
// [Cgroup.Delete] and [Cgroup.Close].
func (t *Tree) Create(cgroupsPath string) (*Cgroup, error) {
	parts, err := splitPath(cgroupsPath)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := 1; i < len(parts); i++ {
		if owner := path.Join(parts[:i]...); t.live[owner] {
			return nil, sys.Invalidf("cgroupsPath %q lies inside the cgroup of another container, %s", cgroupsPath, path.Join(t.path, owner))
		}
	}
	rel := path.Join(parts...)
	c := &Cgroup{tree: t, rel: rel, path: path.Join(t.path, rel)}
	if t.live[rel] {
		return nil, sys.Mark(sys.ErrExists, fmt.Errorf("create cgroup %s: %w", c.path, unix.EEXIST))
	}
	err = t.dir.do(func(fd int) error {
		c.dir, err = t.makePath(fd, parts)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", c.path, err)
	}
	t.live[rel] = true
	return c, nil
}

// makePath makes parts below root and returns the last one, open. On failure
// it removes the directories it made. The caller holds t.mu.
func (t *Tree) makePath(root int, parts []string) (dir, error) {
	fd, err := unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return dir{}, err
	}
	made := len(parts) // parts[made:] did not exist before
	for i, part := range parts {
		child, fresh, err := makeDir(fd, part)
		unix.Close(fd)
		last := i == len(parts)-1
		if err == nil && last && !fresh {
			unix.Close(child)
			err = sys.Mark(sys.ErrExists, unix.EEXIST)
		}
		if err != nil {
			t.removeUp(root, parts[:i], made)
			return dir{}, err
		}
		if fresh {
			made = min(made, i)
		}
		if !last && (fresh || !delegated(child)) {
			delegate(child)
		}
		fd = child
	}
	if made > 0 { // a parent was there, which somebody else may have made
		if err := checkDomain(fd); err != nil {
			unix.Close(fd)
			t.removeUp(root, parts, made)
			return dir{}, err
		}
	}
	d, err := newDir(fd, path.Join(parts...))
	if err != nil {
		t.removeUp(root, parts, made)
	}
	return d, err
}

// checkDomain refuses a new cgroup below a threaded or domain threaded one: no
// process can be put there (cgroup-v2.rst, "Threads"), and it lacks the memory
// and io controllers, which a limit would complain of first.
func checkDomain(fd int) error {
	kind, err := readAt(fd, "cgroup.type")
	if err != nil || strings.TrimSpace(string(kind)) == "domain" {
		return nil
	}
	return sys.Mark(sys.ErrState, fmt.Errorf("the parent is threaded or domain threaded and what is made in it %q, where no container can run: "+
		"choose another cgroupsPath: %w", strings.TrimSpace(string(kind)), unix.EOPNOTSUPP))
}

// removeUp removes parts[keep:] below root, deepest first, as long as they are
// empty and no container's own. The caller holds t.mu.
func (t *Tree) removeUp(root int, parts []string, keep int) {
	for n := len(parts); n > keep; n-- {
		if t.live[path.Join(parts[:n]...)] {
			return
		}
		if err := removeAt(root, parts[:n]); err != nil && !absent(err) {
			return
		}
	}
}

// removeAt removes the empty directory parts below root.
func removeAt(root int, parts []string) error {
	parent := root
	if len(parts) > 1 {
		fd, err := openAt(root, path.Join(parts[:len(parts)-1]...), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		parent = fd
	}
	return unix.Unlinkat(parent, parts[len(parts)-1], unix.AT_REMOVEDIR)
}

// makeDir makes and opens the directory name in parent; fresh tells whether it
// is new. The caller owns the descriptor.
func makeDir(parent int, name string) (fd int, fresh bool, err error) {
	err = unix.Mkdirat(parent, name, 0o755)
	if err != nil && err != unix.EEXIST {
		return -1, false, err
	}
	fresh = err == nil
	fd, err = openAt(parent, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) {
		// The name is one of cgroupfs's own files, such as cgroup.procs.
		err = sys.Mark(sys.ErrInvalid, fmt.Errorf("%s: %w", name, err))
	}
	if err != nil && fresh {
		unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		fresh = false
	}
	return fd, fresh, err
}

// delegate enables in dirfd's subtree whatever controllers it has itself: all
// in one write where possible, otherwise one by one, so that one that is
// refused does not keep the others back. It is best effort: what is missing
// shows when a limit asks for it.
func delegate(dirfd int) {
	data, err := readAt(dirfd, "cgroup.controllers")
	if err != nil {
		return
	}
	names := strings.Fields(string(data))
	if len(names) == 0 || writeAt(dirfd, "cgroup.subtree_control", "+"+strings.Join(names, " +")) == nil {
		return
	}
	for _, name := range names {
		_ = writeAt(dirfd, "cgroup.subtree_control", "+"+name)
	}
}

// delegated reports whether dirfd hands all its controllers down already.
func delegated(dirfd int) bool {
	have, err1 := readAt(dirfd, "cgroup.controllers")
	down, err2 := readAt(dirfd, "cgroup.subtree_control")
	return err1 == nil && err2 == nil && string(have) == string(down)
}

// remove removes the directory of c, which must be empty, and then those of
// its parents that nothing else lives in. A directory that is not there any
// more counts as removed. Once removed, c no longer owns its path: later calls
// do nothing.
func (t *Tree) remove(c *Cgroup) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.deleted {
		return nil
	}
	return t.dir.do(func(fd int) error {
		parts := strings.Split(c.rel, "/")
		if err := removeAt(fd, parts); err != nil && !absent(err) {
			return err
		}
		c.deleted = true
		delete(t.live, c.rel)
		t.removeUp(fd, parts[:len(parts)-1], 0)
		return nil
	})
}
