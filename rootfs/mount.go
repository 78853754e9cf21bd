package rootfs

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// mount emits one entry of the spec's mounts.
func (c *compiler) mount(m *specs.Mount) {
	o, err := parseOptions(m.Options)
	if err != nil {
		c.p.Fail(sys.Invalidf("mount %s: %w", m.Destination, err))
		return
	}
	if !path.IsAbs(m.Destination) || inside(m.Destination) == "" {
		c.p.Fail(sys.Invalidf("mount destination %q: must be an absolute path below /", m.Destination))
		return
	}
	if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 || o.idmap {
		c.p.Fail(sys.Unsupportedf("mount %s: idmapped mounts are not supported yet", m.Destination))
		return
	}
	if o.tmpcopyup {
		c.p.Fail(sys.Unsupportedf("mount %s: tmpcopyup is not supported yet", m.Destination))
		return
	}
	switch {
	case o.remount:
		c.remount(m, o)
	case o.bind || m.Type == "bind":
		c.bind(m.Source, m, o)
	case m.Type == "cgroup" || m.Type == "cgroup2":
		c.cgroup(m, o)
	default:
		c.fileSystem(m.Type, m, o)
	}
}

func (c *compiler) step(what string, m *specs.Mount) {
	c.p.Step("mount %s on %s", what, m.Destination)
}

// bind clones a mount of the guest, or of a source relative to the bundle.
func (c *compiler) bind(source string, m *specs.Mount, o mountOptions) {
	p := c.p
	if source == "" {
		p.Fail(sys.Invalidf("mount %s: bind without a source", m.Destination))
		return
	}
	if !path.IsAbs(source) {
		source = path.Join(c.opt.Bundle, source)
	}
	if !c.procAllows(m, true) {
		return
	}
	c.step(source, m)
	mode, err := c.opt.Stat(source)
	isDir := err != nil || mode.IsDir() // a missing source is reported by open_tree
	recursive := uint64(0)
	if o.rec {
		recursive = unix.AT_RECURSIVE
	}
	p.Call(unix.SYS_OPEN_TREE, nsexec.Int(unix.AT_FDCWD), p.Str(source), nsexec.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|recursive)).Store(c.tree)
	c.setattr(o.set, o.clr, 0)
	c.open(inside(m.Destination), isDir, false)
	c.attach(m, o)
}

// fileSystem mounts a new instance (fsopen(2), fsconfig(2), fsmount(2), Linux 5.2).
func (c *compiler) fileSystem(fstype string, m *specs.Mount, o mountOptions) {
	p := c.p
	if fstype == "" || strings.Contains(fstype, "/") {
		p.Fail(sys.Invalidf("mount %s: file system type %q", m.Destination, fstype))
		return
	}
	if !c.procAllows(m, false) {
		return
	}
	c.step(fstype, m)
	// Links are refused where a kernel file system goes (CVE-2019-19921).
	strict := fstype == "proc" || fstype == "sysfs"
	if slices.ContainsFunc(o.data, func(s string) bool { return len(s) > maxFsconfigValue }) {
		c.mountByData(fstype, m, o, strict)
		return
	}
	p.Call(unix.SYS_FSOPEN, p.Str(fstype), nsexec.Int(unix.FSOPEN_CLOEXEC)).Store(c.fs)
	if m.Source != "" {
		c.fsconfig(unix.FSCONFIG_SET_STRING, "source", m.Source)
	}
	if !sharedSuper(fstype) {
		for _, f := range o.super {
			c.fsconfig(unix.FSCONFIG_SET_FLAG, f, "")
		}
	}
	for _, d := range o.data {
		if k, v, ok := strings.Cut(d, "="); ok {
			c.fsconfig(unix.FSCONFIG_SET_STRING, k, v)
		} else {
			c.fsconfig(unix.FSCONFIG_SET_FLAG, d, "")
		}
	}
	p.Call(unix.SYS_FSCONFIG, c.fs.Arg(), nsexec.Int(unix.FSCONFIG_CMD_CREATE), nsexec.Nil, nsexec.Nil, nsexec.Int(0))
	p.Call(unix.SYS_FSMOUNT, c.fs.Arg(), nsexec.Int(unix.FSMOUNT_CLOEXEC), nsexec.Int(o.set)).Store(c.tree)
	c.close(c.fs)
	c.open(inside(m.Destination), true, strict)
	c.attach(m, o)
}

// maxFsconfigValue: the kernel copies at most 256 bytes of a value
// (fs/fsopen.c); longer ones (overlay's lowerdir) go through mount(2).
const maxFsconfigValue = 255

func (c *compiler) fsconfig(cmd int, key, value string) {
	v := nsexec.Nil
	if cmd == unix.FSCONFIG_SET_STRING {
		v = c.p.Str(value)
	}
	c.p.Call(unix.SYS_FSCONFIG, c.fs.Arg(), nsexec.Int(cmd), c.p.Str(key), v, nsexec.Int(0))
}

// sharedSuper: file systems whose superblock may be in use elsewhere, so that
// its flags are not one container's to choose.
func sharedSuper(fstype string) bool {
	return slices.Contains([]string{"proc", "sysfs", "cgroup2", "mqueue"}, fstype)
}

// mountByData mounts with mount(2), on the destination as working directory so
// that it is still resolved only once.
func (c *compiler) mountByData(fstype string, m *specs.Mount, o mountOptions, strict bool) {
	p := c.p
	c.open(inside(m.Destination), true, strict)
	p.Call(unix.SYS_FCHDIR, c.dest.Arg())
	c.close(c.dest)
	data := p.Str(strings.Join(append(slices.Clone(o.super), o.data...), ","))
	p.Call(unix.SYS_MOUNT, p.Str(m.Source), p.Str("."), p.Str(fstype), nsexec.Int(0), data)
	p.Call(unix.SYS_FCHDIR, c.root.Arg())
	c.open(inside(m.Destination), true, strict)
	set, clr := attrWords(o.set, o.clr)
	p.Call(unix.SYS_MOUNT_SETATTR, c.dest.Arg(), p.Str(""), nsexec.Int(unix.AT_EMPTY_PATH), c.attr(set, clr, 0), nsexec.Int(unix.MOUNT_ATTR_SIZE_VER0))
	c.close(c.dest)
}

// cgroup mounts the cgroup hierarchy: with a cgroup namespace a view of its
// own, else a bind of the container's directory. Read-only unless "rw" is said
// (CVE-2023-25809); options of the hierarchy are not a container's to change.
func (c *compiler) cgroup(m *specs.Mount, o mountOptions) {
	o.data, o.super = nil, nil
	if !slices.Contains(m.Options, "rw") {
		o.set |= unix.MOUNT_ATTR_RDONLY
	}
	if c.opt.CgroupNS {
		c.fileSystem("cgroup2", m, o)
		return
	}
	c.bind(c.opt.Cgroup, m, o)
}

// remount changes the flags of what is mounted already.
func (c *compiler) remount(m *specs.Mount, o mountOptions) {
	p := c.p
	if len(o.data) > 0 {
		p.Fail(sys.Unsupportedf("mount %s: remount with file system options is not supported yet", m.Destination))
		return
	}
	p.Step("remount %s", m.Destination)
	c.open(inside(m.Destination), true, false)
	set, clr := attrWords(o.set, o.clr)
	p.Call(unix.SYS_MOUNT_SETATTR, c.dest.Arg(), p.Str(""), nsexec.Int(unix.AT_EMPTY_PATH), c.attr(set, clr, 0), nsexec.Int(unix.MOUNT_ATTR_SIZE_VER0))
	c.propagate(c.dest, o)
	c.close(c.dest)
}

// setattr changes the detached tree.
func (c *compiler) setattr(set, clr, flags uint64) {
	if set|clr == 0 {
		return
	}
	set, clr = attrWords(set, clr)
	c.p.Call(unix.SYS_MOUNT_SETATTR, c.tree.Arg(), c.p.Str(""), nsexec.Int(unix.AT_EMPTY_PATH|flags), c.attr(set, clr, 0), nsexec.Int(unix.MOUNT_ATTR_SIZE_VER0))
}

// attach moves the detached tree to the destination.
func (c *compiler) attach(m *specs.Mount, o mountOptions) {
	p := c.p
	buf := p.Buffer(statxSize)
	c.statx(c.dest, buf)
	p.FailIfEqual(unix.EINVAL, "mount "+m.Destination+": the destination is the container's root itself",
		[2]nsexec.Arg{buf.Plus(statxIno), c.id.Plus(statxIno)}, [2]nsexec.Arg{buf.Plus(statxMntID), c.id.Plus(statxMntID)})
	c.setattr(o.rset, o.rclr, unix.AT_RECURSIVE)
	c.moveMount()
	c.propagate(c.tree, o)
	c.close(c.tree)
	c.close(c.dest)
}

func (c *compiler) moveMount() nsexec.Insn {
	return c.p.Call(unix.SYS_MOVE_MOUNT, c.tree.Arg(), c.p.Str(""), c.dest.Arg(), c.p.Str(""), nsexec.Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

func (c *compiler) propagate(r nsexec.Reg, o mountOptions) {
	for _, f := range o.propagation {
		flags := uint64(unix.AT_EMPTY_PATH)
		if f&unix.MS_REC != 0 {
			flags |= unix.AT_RECURSIVE
		}
		c.p.Call(unix.SYS_MOUNT_SETATTR, r.Arg(), c.p.Str(""), nsexec.Int(flags), c.attr(0, 0, f&^unix.MS_REC), nsexec.Int(unix.MOUNT_ATTR_SIZE_VER0))
	}
}

// procFiles may be covered inside /proc: what lxcfs and its like provide.
var procFiles = []string{
	"cpuinfo", "diskstats", "loadavg", "meminfo", "net/dev", "slabinfo", "stat", "swaps", "uptime",
	"sys/crypto/fips_enabled", "sys/kernel/ns_last_pid",
}

// procAllows refuses mounts inside /proc, where they could hide files the
// container's confinement relies on (CVE-2019-16884, CVE-2023-28642).
func (c *compiler) procAllows(m *specs.Mount, bind bool) bool {
	below, ok := strings.CutPrefix(inside(m.Destination), "proc/")
	switch {
	case !ok && (inside(m.Destination) != "proc" || !bind || m.Source == "/proc"):
		return true
	case ok && bind && slices.Contains(procFiles, below):
		return true
	}
	c.p.Fail(sys.Invalidf("mount %s: cannot be mounted because it is inside /proc", m.Destination))
	return false
}
