package rootfs

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// rootPropagation is linux.rootfsPropagation as things to do
// (mount_namespaces(7); config-linux.md "Rootfs Mount Propagation").
//
// Unless it is shared, no mount of the container's namespace stays a peer of a
// guest's mount, so nothing can propagate out. runc leaves those below "/" as
// they are for the values without "r".
type rootPropagation struct {
	first uint64 // for the guest's "/" in the new mount namespace
	last  uint64 // for the container's "/", 0 for none
}

var rootPropagations = map[string]rootPropagation{
	"":            {unix.MS_SLAVE | unix.MS_REC, 0},
	"slave":       {unix.MS_SLAVE | unix.MS_REC, 0}, // a clone of a slave is one
	"rslave":      {unix.MS_SLAVE | unix.MS_REC, 0},
	"private":     {unix.MS_PRIVATE | unix.MS_REC, 0},
	"rprivate":    {unix.MS_PRIVATE | unix.MS_REC, 0},
	"unbindable":  {unix.MS_PRIVATE | unix.MS_REC, unix.MS_UNBINDABLE},
	"runbindable": {unix.MS_PRIVATE | unix.MS_REC, unix.MS_UNBINDABLE | unix.MS_REC},
	"shared":      {unix.MS_SHARED, unix.MS_SHARED},
	"rshared":     {unix.MS_SHARED | unix.MS_REC, unix.MS_SHARED | unix.MS_REC},
}

func (r rootPropagation) shared() bool { return r.first&unix.MS_SHARED != 0 }

func (r rootPropagation) String() string {
	switch {
	case r.shared():
		return "shared"
	case r.first&unix.MS_PRIVATE != 0:
		return "private"
	}
	return "slaves"
}

func (c *Compiler) propagation() rootPropagation {
	r, ok := rootPropagations[c.linux.RootfsPropagation]
	if !ok {
		c.p.Fail(sys.Invalidf("linux.rootfsPropagation %q is not shared, slave, private or unbindable", c.linux.RootfsPropagation))
	}
	return r
}

// prepareRoot sets the propagation of the guest's mounts and mounts the root
// file system over itself: pivot_root(2) wants a mount point that is not
// shared, below one that is not shared either.
func (c *Compiler) prepareRoot() {
	p, prop, root := c.p, c.propagation(), c.rootPath()
	p.Step("make mounts of the guest %s", prop)
	p.Call(unix.SYS_MOUNT, nsexec.Nil, p.Str("/"), nsexec.Nil, nsexec.Int(prop.first), nsexec.Nil)
	if prop.shared() {
		parent, err := c.opt.ParentMount(root)
		if err != nil {
			p.Fail(fmt.Errorf("prepare root file system %s: %w", root, err))
		}
		p.Step("make %s private, the mount that %s is on", parent, root)
		p.Call(unix.SYS_MOUNT, nsexec.Nil, p.Str(parent), nsexec.Nil, nsexec.Int(unix.MS_PRIVATE), nsexec.Nil)
	}
	p.Step("prepare root file system %s", root)
	p.Call(unix.SYS_OPEN_TREE, nsexec.Int(unix.AT_FDCWD), p.Str(root), nsexec.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)).Store(c.root)
	if prop.shared() { // with the container's own, not with the guest
		c.propagate(c.root, unix.MS_SLAVE|unix.MS_REC)
	}
	p.Call(unix.SYS_MOVE_MOUNT, c.root.Arg(), p.Str(""), nsexec.Int(unix.AT_FDCWD), p.Str(root), nsexec.Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS))
	p.Call(unix.SYS_FCHDIR, c.root.Arg())
	c.statx(c.root, c.id)
}

// pivot changes roots (pivot_root(2), `pivot_root(".", ".")`). Where mounts of
// the guest are peers of the container's, the old root must not take the
// guest's along when it goes.
func (c *Compiler) pivot() {
	p, prop := c.p, c.propagation()
	dot := p.Str(".")
	p.Step("pivot_root into %s", c.rootPath())
	if prop.shared() {
		p.Call(unix.SYS_OPENAT, nsexec.Int(unix.AT_FDCWD), p.Str("/"), nsexec.Int(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC), nsexec.Int(0)).Store(c.dest)
	}
	p.Call(unix.SYS_FCHDIR, c.root.Arg())
	p.Call(unix.SYS_PIVOT_ROOT, dot, dot)
	p.Step("unmount the guest's root")
	if prop.shared() {
		c.propagate(c.dest, unix.MS_SLAVE|unix.MS_REC)
		c.close(c.dest)
	}
	p.Call(unix.SYS_UMOUNT2, dot, nsexec.Int(unix.MNT_DETACH))
	p.Call(unix.SYS_CHDIR, p.Str("/"))
	if prop.last != 0 {
		p.Step("make the root file system %s", c.linux.RootfsPropagation)
		c.propagate(c.root, prop.last)
	}
}

// parentMount finds the mount point that a directory is on.
func parentMount(dir string) (string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return "", err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return "", err
	}
	return longestParent(dir, mounts)
}

func longestParent(dir string, mounts []*mountinfo.Info) (string, error) {
	parent := ""
	for _, m := range mounts {
		if isBelow(dir, m.Mountpoint) && len(m.Mountpoint) > len(parent) {
			parent = m.Mountpoint
		}
	}
	if parent == "" {
		return "", fmt.Errorf("no mount holds %s", dir)
	}
	return parent, nil
}

// isBelow reports whether a clean path is another one or inside it.
func isBelow(name, dir string) bool {
	return dir == "/" || name == dir || strings.HasPrefix(name, dir+"/")
}
