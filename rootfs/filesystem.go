package rootfs

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// fileSystem mounts a new instance (fsopen(2), fsconfig(2), fsmount(2), Linux 5.2).
func (c *Compiler) fileSystem(fstype string, e *entry) {
	p := c.p
	p.Step("mount %s on %s", fstype, e.Destination)
	if fstype == "devtmpfs" && len(e.data) > 0 {
		p.Fail(sys.Invalidf("mount %s: the options %s of devtmpfs would change the guest's /dev", e.Destination, strings.Join(e.data, ",")))
	}
	options := c.label(fstype, e)
	if slices.ContainsFunc(options, func(s string) bool { return len(s) > maxFsconfigValue }) {
		c.mountByData(fstype, e, options)
		return
	}
	seal := sealLater(fstype, e)
	open := p.Call(unix.SYS_FSOPEN, p.Str(fstype), nsexec.Int(unix.FSOPEN_CLOEXEC)).Store(c.fs)
	if e.Source != "" {
		c.fsconfig(unix.FSCONFIG_SET_STRING, "source", e.Source)
	}
	if !sharedSuper(fstype) {
		for _, f := range e.super {
			if f != "ro" || !seal {
				c.fsconfig(unix.FSCONFIG_SET_FLAG, f, "")
			}
		}
	}
	c.fsOptions(options)
	create := p.Call(unix.SYS_FSCONFIG, c.fs.Arg(), nsexec.Int(unix.FSCONFIG_CMD_CREATE), nsexec.Nil, nsexec.Nil, nsexec.Int(0))
	set := e.set
	if seal {
		set &^= unix.MOUNT_ATTR_RDONLY
	}
	mount := p.Call(unix.SYS_FSMOUNT, c.fs.Arg(), nsexec.Int(unix.FSMOUNT_CLOEXEC), nsexec.Int(set)).Store(c.tree)
	c.close(c.fs)
	if shared, ok := sharedView[fstype]; ok && c.owns(unix.CLONE_NEWUSER) && !c.owns(shared.namespace) {
		c.bindInstead(shared.path, e, open, create, mount)
	}
	c.idmap(e)
	c.openFor(fstype, e)
	if seal {
		c.keepOpen()
	}
	c.attach(e)
}

// openFor opens the destination of a new file system. Links are refused where
// a kernel file system goes (CVE-2019-19921). A tmpfs that is not told its mode
// takes that of the directory it covers, as with runc.
func (c *Compiler) openFor(fstype string, e *entry) {
	flags := openFlags{dir: true, strict: withoutLinks(fstype)}
	if fstype == "tmpfs" && !e.has("mode") && !e.tmpcopyup {
		flags.existed = func() {
			c.statx(c.dest, c.stat)
			c.p.Poke(c.stat.Plus(statxMode+2), nsexec.Int(0)) // what follows the mode
			c.p.Load(c.fs, c.stat.Plus(statxMode))
			c.p.Call(unix.SYS_FCHMODAT, c.tree.Arg(), c.p.Str("."), c.fs.Arg())
		}
	}
	c.open(e.rel, flags)
}

func withoutLinks(fstype string) bool { return fstype == "proc" || fstype == "sysfs" }

// sharedView: file systems that show a namespace, and where the guest has them.
var sharedView = map[string]struct {
	namespace uint64
	path      string
}{"sysfs": {unix.CLONE_NEWNET, "/sys"}, "proc": {unix.CLONE_NEWPID, "/proc"}}

// bindInstead: a container with a user namespace that shares the guest's
// network or pid namespace may not mount sysfs or proc anew. It sees the
// guest's own, as with crun; what the guest has locked there stays locked.
func (c *Compiler) bindInstead(path string, e *entry, failed ...nsexec.Insn) {
	p := c.p
	for _, in := range failed {
		in.Ignore(unix.EPERM)
	}
	p.Catch(func() {
		p.Call(unix.SYS_OPEN_TREE, nsexec.Int(unix.AT_FDCWD), p.Str(path), nsexec.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)).Store(c.tree)
		if set := e.set &^ unix.MOUNT_ATTR__ATIME; set != 0 { // atime flags are always locked
			c.setAttributes(c.tree, set, 0, unix.AT_RECURSIVE)
		}
	}, failed...)
}

// maxFsconfigValue: the kernel copies at most 256 bytes of a value
// (fs/fsopen.c); longer ones (overlay's lowerdir) go through mount(2).
const maxFsconfigValue = 255

func (c *Compiler) fsconfig(cmd int, key, value string) {
	v := nsexec.Nil
	if cmd == unix.FSCONFIG_SET_STRING {
		v = c.p.Str(value)
	}
	c.p.Call(unix.SYS_FSCONFIG, c.fs.Arg(), nsexec.Int(cmd), c.p.Str(key), v, nsexec.Int(0))
}

// fsOptions hands over what only the file system understands.
func (c *Compiler) fsOptions(options []string) {
	for _, d := range options {
		if k, v, ok := strings.Cut(d, "="); ok {
			c.fsconfig(unix.FSCONFIG_SET_STRING, k, v)
		} else {
			c.fsconfig(unix.FSCONFIG_SET_FLAG, d, "")
		}
	}
}

// sharedSuper: file systems whose superblock may be in use elsewhere, so that
// its flags are not one container's to choose.
func sharedSuper(fstype string) bool {
	return slices.Contains([]string{"proc", "sysfs", "cgroup2", "mqueue", "devtmpfs", "debugfs", "tracefs", "securityfs",
		"configfs", "pstore", "efivarfs", "fusectl", "binfmt_misc"}, fstype)
}

// sealLater: a read-only tmpfs is writable until all that goes into it is
// there: devices, mount points, its old contents.
func sealLater(fstype string, e *entry) bool {
	return e.set&unix.MOUNT_ATTR_RDONLY != 0 && (fstype == "tmpfs" || e.rel == "dev")
}

// keepOpen puts c.tree aside for seal, and a copy in its place.
func (c *Compiler) keepOpen() {
	cell := c.p.Words(0)
	c.sealed = append(c.sealed, cell)
	c.p.Poke(cell, c.tree.Arg())
	c.p.Call(unix.SYS_FCNTL, c.tree.Arg(), nsexec.Int(unix.F_DUPFD_CLOEXEC), nsexec.Int(0)).Store(c.tree)
}

// mountByData mounts with mount(2), on the destination as working directory so
// that it is resolved only once. Only for recursive attributes and propagation
// is the new mount looked up again. Links are refused as in openFor.
func (c *Compiler) mountByData(fstype string, e *entry, options []string) {
	p := c.p
	if e.idmap || e.tmpcopyup {
		p.Fail(sys.Unsupportedf("mount %s: idmap and tmpcopyup together with an option of more than %d bytes", e.Destination, maxFsconfigValue))
		return
	}
	data := joinOptions(options)
	if len(data) >= pageSize {
		p.Fail(sys.Invalidf("mount %s: the options are %d bytes long, the kernel takes less than a page", e.Destination, len(data)))
		return
	}
	flags := openFlags{dir: true, strict: withoutLinks(fstype)}
	c.open(e.rel, flags)
	c.checkDestination(e)
	p.Call(unix.SYS_FCHDIR, c.dest.Arg())
	c.close(c.dest)
	p.Call(unix.SYS_MOUNT, p.Str(e.Source), p.Str("."), p.Str(fstype), nsexec.Int(msFlagsOf(e.set)|superFlags(e.super)), p.Str(data))
	p.Call(unix.SYS_FCHDIR, c.root.Arg())
	if e.rset|e.rclr == 0 && len(e.propagation) == 0 {
		return
	}
	c.open(e.rel, flags)
	if e.rset|e.rclr != 0 {
		c.setAttributes(c.dest, e.rset, e.rclr, unix.AT_RECURSIVE)
	}
	for _, f := range e.propagation {
		c.propagate(c.dest, f)
	}
	c.close(c.dest)
}

const pageSize = 4096

// joinOptions makes one string of the options, as mount(2) wants them. SELinux
// takes its own out of it first, up to a comma outside quotes, and drops the
// quotes (selinux_sb_eat_lsm_opts): a context with two categories needs them.
func joinOptions(options []string) string {
	joined := slices.Clone(options)
	for i, o := range joined {
		switch k, v, _ := strings.Cut(o, "="); k {
		case "context", "fscontext", "defcontext", "rootcontext":
			if strings.Contains(v, ",") {
				joined[i] = k + `="` + v + `"`
			}
		}
	}
	return strings.Join(joined, ",")
}

// superFlags are flags of the superblock as mount(2) wants them. Among the
// options, file systems without fs_context (overlay before Linux 6.5) refuse them.
func superFlags(super []string) (flags uint64) {
	for _, f := range super {
		switch f {
		case "ro":
			flags |= unix.MS_RDONLY
		case "sync":
			flags |= unix.MS_SYNCHRONOUS
		case "dirsync":
			flags |= unix.MS_DIRSYNC
		case "lazytime":
			flags |= unix.MS_LAZYTIME
		case "mand":
			flags |= unix.MS_MANDLOCK
		}
	}
	return flags
}

// msFlagsOf are attributes as mount(2) wants them.
func msFlagsOf(set uint64) (flags uint64) {
	for _, f := range []struct{ attr, ms uint64 }{
		{unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY}, {unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID}, {unix.MOUNT_ATTR_NODEV, unix.MS_NODEV},
		{unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC}, {unix.MOUNT_ATTR_NODIRATIME, unix.MS_NODIRATIME}, {unix.MOUNT_ATTR_NOATIME, unix.MS_NOATIME},
		{unix.MOUNT_ATTR_STRICTATIME, unix.MS_STRICTATIME}, {unix.MOUNT_ATTR_NOSYMFOLLOW, unix.MS_NOSYMFOLLOW},
	} {
		if set&f.attr != 0 {
			flags |= f.ms
		}
	}
	return flags
}
