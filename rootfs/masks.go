package rootfs

import (
	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

// readonlyPath binds a path over itself, read-only with all that is below.
func (c *Compiler) readonlyPath(name string) {
	p := c.p
	if inside(name) == "" || p.Err() != nil {
		return
	}
	p.Step("make %s read-only", name)
	c.find(inside(name), 0, func() {
		p.Call(unix.SYS_OPEN_TREE, c.dest.Arg(), p.Str(""), nsexec.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)).Store(c.tree)
		c.setAttributes(c.tree, unix.MOUNT_ATTR_RDONLY, 0, unix.AT_RECURSIVE)
		c.moveMount()
		c.close(c.tree)
		c.close(c.dest)
	}, nil)
}

// maskedPaths hides directories behind an empty read-only tmpfs (one for all)
// and files behind the guest's own /dev/null, never the container's
// (CVE-2025-31133): read-only too, or a container's root could change the owner
// and the mode of the guest's node through it. Reading and writing a device is
// not affected by that.
func (c *Compiler) maskedPaths(names []string) {
	p := c.p
	p.SetReg(c.mask, ^uint64(0))
	for _, name := range names {
		if inside(name) == "" || p.Err() != nil {
			continue
		}
		p.Step("mask %s", name)
		c.find(inside(name), unix.O_DIRECTORY, c.maskDir, func() {
			c.find(inside(name), 0, c.maskFile, nil)
		})
	}
}

var null = node{kind: unix.S_IFCHR, major: 1, minor: 3}

func (c *Compiler) maskFile() {
	p := c.p
	p.Call(unix.SYS_OPEN_TREE, nsexec.Int(unix.AT_FDCWD), p.Str("/dev/null"), nsexec.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)).Store(c.tree)
	c.statx(c.tree, c.stat)
	c.checkNode(null, unix.ENODEV, "mask a file: /dev/null of the guest is something else")
	c.setAttributes(c.tree, unix.MOUNT_ATTR_RDONLY, 0, 0)
	c.moveMount()
	c.close(c.tree)
	c.close(c.dest)
}

// maskDir clones the first mask, which must be attached to be cloned, or makes it.
func (c *Compiler) maskDir() {
	p := c.p
	clone := p.Call(unix.SYS_OPEN_TREE, c.mask.Arg(), p.Str(""), nsexec.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)).Store(c.tree).Ignore(unix.EBADF)
	p.IfError(clone, func() {
		p.Call(unix.SYS_FSOPEN, p.Str("tmpfs"), nsexec.Int(unix.FSOPEN_CLOEXEC)).Store(c.fs)
		c.fsconfig(unix.FSCONFIG_SET_FLAG, "ro", "")
		c.fsconfig(unix.FSCONFIG_SET_STRING, "nr_blocks", "1")
		c.fsconfig(unix.FSCONFIG_SET_STRING, "nr_inodes", "1")
		p.Call(unix.SYS_FSCONFIG, c.fs.Arg(), nsexec.Int(unix.FSCONFIG_CMD_CREATE), nsexec.Nil, nsexec.Nil, nsexec.Int(0))
		p.Call(unix.SYS_FSMOUNT, c.fs.Arg(), nsexec.Int(unix.FSMOUNT_CLOEXEC), nsexec.Int(unix.MOUNT_ATTR_RDONLY)).Store(c.tree)
		c.close(c.fs)
		p.Call(unix.SYS_FCNTL, c.tree.Arg(), nsexec.Int(unix.F_DUPFD_CLOEXEC), nsexec.Int(0)).Store(c.mask)
	})
	c.moveMount()
	c.close(c.tree)
	c.close(c.dest)
}
