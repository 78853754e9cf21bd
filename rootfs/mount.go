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

// parse reads one of the spec's mounts and refuses what makes no sense.
func (c *Compiler) parse(m *specs.Mount) (entry, error) {
	invalid := func(format string, args ...any) (entry, error) {
		return entry{Mount: m}, sys.Invalidf("mount "+strings.ReplaceAll(m.Destination, "%", "%%")+": "+format, args...)
	}
	if len(m.Destination) >= maxPath {
		return entry{Mount: m}, sys.Invalidf("mount %.40s...: the destination is longer than a path can be", m.Destination)
	}
	if len(m.Options) > maxOptions {
		return invalid("%d options, more than %d", len(m.Options), maxOptions)
	}
	o, err := parseOptions(m.Options)
	if err != nil {
		return invalid("%w", err)
	}
	e := entry{Mount: m, mountOptions: o, rel: inside(m.Destination)}
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
		e.idmap = true
	}
	switch {
	case m.Destination == "" || e.rel == "":
		return invalid("the destination must be a path below /")
	case (len(m.UIDMappings) == 0) != (len(m.GIDMappings) == 0):
		return invalid("uidMappings and gidMappings belong together")
	case e.idmap && len(m.UIDMappings) == 0 && !c.owns(unix.CLONE_NEWUSER):
		return invalid("idmap without uidMappings and gidMappings, and there is no user namespace to take them from")
	case e.idmap && o.remount:
		return invalid("idmap cannot be changed by remount")
	case o.tmpcopyup && (m.Type != "tmpfs" || o.bind || o.remount):
		return invalid("tmpcopyup is for new mounts of type tmpfs")
	case o.remount:
	case c.isBind(&e) && c.source(&e) == "":
		return invalid("bind without a source")
	case !c.isBind(&e) && !isCgroup(m.Type) && (m.Type == "" || strings.Contains(m.Type, "/")):
		return invalid("file system type %q", m.Type)
	}
	if !procAllows(&e) {
		return invalid("cannot be mounted because it is inside /proc")
	}
	return e, nil
}

// mount emits one entry of the spec's mounts.
func (c *Compiler) mount(e *entry) {
	switch {
	case e.remount:
		c.remount(e)
	case c.isBind(e):
		if isCgroup(e.Type) {
			e.cgroupOptions()
		}
		c.bind(e)
	case isCgroup(e.Type):
		e.cgroupOptions()
		c.fileSystem("cgroup2", e)
	default:
		c.fileSystem(e.Type, e)
	}
}

func isCgroup(fstype string) bool { return fstype == "cgroup" || fstype == "cgroup2" }

// cgroupOptions: a mount of the cgroup hierarchy is read-only unless "rw" is
// said (CVE-2023-25809); options of the hierarchy are not a container's to change.
func (e *entry) cgroupOptions() {
	e.data, e.super = nil, nil
	if !slices.Contains(e.Options, "rw") {
		e.set |= unix.MOUNT_ATTR_RDONLY
	}
}

// isBind: also a cgroup mount without a cgroup namespace, which shows the
// container's directory and nothing above.
func (c *Compiler) isBind(e *entry) bool {
	return !e.remount && (e.bind || e.Type == "bind" || isCgroup(e.Type) && !c.owns(unix.CLONE_NEWCGROUP))
}

// source is what a bind shows, as the guest sees it.
func (c *Compiler) source(e *entry) string {
	switch {
	case isCgroup(e.Type) && !e.bind:
		return c.opt.Cgroup
	case e.Source == "" || path.IsAbs(e.Source):
		return e.Source
	}
	return path.Join(c.opt.Bundle, e.Source)
}

// openSource clones what is to be bound, with its id mapping, into c.tree.
func (c *Compiler) openSource(e *entry) {
	p, recursive := c.p, uint64(0)
	if e.rec {
		recursive = unix.AT_RECURSIVE
	}
	open := p.Call(unix.SYS_OPEN_TREE, nsexec.Int(unix.AT_FDCWD), p.Str(c.source(e)), nsexec.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|recursive)).Store(c.tree)
	if c.owns(unix.CLONE_NEWUSER) && !e.rec {
		p.IfError(open.Ignore(unix.EINVAL), func() {
			p.FailWith(unix.EINVAL, "mount "+c.source(e)+" on "+e.Destination+": in a user namespace, what has mounts below can only be bound with them (rbind)")
		})
	}
	c.idmap(e)
}

// bind mounts a file or directory of the guest. Attributes that the options do
// not name stay those of the source, as with mount(8); so those that the
// source has locked, in a user namespace, stay too (mount_namespaces(7)).
func (c *Compiler) bind(e *entry) {
	p := c.p
	p.Step("mount %s on %s", c.source(e), e.Destination)
	mode, err := c.opt.Stat(c.source(e))
	isDir := err != nil || mode.IsDir() // a missing source is reported by open_tree
	if e.opened {
		p.Load(c.tree, e.cell)
	} else {
		c.openSource(e)
	}
	if e.set|e.clr != 0 {
		c.setUnlocked(e, c.setAttributes(c.tree, e.set, e.clr, 0))
	}
	c.open(e.rel, openFlags{dir: isDir})
	c.attach(e)
}

// setUnlocked explains why attributes cannot be set in a user namespace.
func (c *Compiler) setUnlocked(e *entry, set nsexec.Insn) {
	if c.owns(unix.CLONE_NEWUSER) {
		c.p.IfError(set.Ignore(unix.EPERM), func() {
			c.p.FailWith(unix.EPERM, "mount "+e.Destination+": in a user namespace, options cannot take away ro, nosuid, nodev, noexec from a mount of the guest, nor change its atime options")
		})
	}
}

// attach moves the detached tree to the destination.
func (c *Compiler) attach(e *entry) {
	c.checkDestination(e)
	if e.tmpcopyup {
		c.copyUp(e)
	}
	if e.rset|e.rclr != 0 {
		c.setUnlocked(e, c.setAttributes(c.tree, e.rset, e.rclr, unix.AT_RECURSIVE))
	}
	c.moveMount()
	for _, f := range e.propagation {
		c.propagate(c.tree, f)
	}
	c.close(c.tree)
	c.close(c.dest)
}

func (c *Compiler) moveMount() nsexec.Insn {
	return c.p.Call(unix.SYS_MOVE_MOUNT, c.tree.Arg(), c.p.Str(""), c.dest.Arg(), c.p.Str(""), nsexec.Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// checkDestination looks at where links of the image have led: not to the root
// itself, and not into a procfs.
func (c *Compiler) checkDestination(e *entry) {
	p := c.p
	c.statx(c.dest, c.stat)
	p.FailIfEqual(unix.EINVAL, "mount "+e.Destination+": the destination is the container's root itself",
		[2]nsexec.Arg{c.stat.Plus(statxIno), c.id.Plus(statxIno)}, [2]nsexec.Arg{c.stat.Plus(statxMntID), c.id.Plus(statxMntID)})
	if e.rel == "proc" || strings.HasPrefix(e.rel, "proc/") {
		return // procAllows
	}
	buf := p.Buffer(128) // struct statfs; f_type comes first
	p.Call(unix.SYS_FSTATFS, c.dest.Arg(), buf)
	p.FailIfEqual(unix.EPERM, "mount "+e.Destination+": cannot be mounted because it leads into /proc", [2]nsexec.Arg{buf, p.Words(unix.PROC_SUPER_MAGIC)})
}

// procFiles may be covered inside /proc: what lxcfs and its like provide.
var procFiles = []string{
	"cpuinfo", "diskstats", "loadavg", "meminfo", "net/dev", "slabinfo", "stat", "swaps", "uptime",
	"sys/crypto/fips_enabled", "sys/kernel/ns_last_pid",
}

// procAllows refuses mounts inside /proc, where they could hide files the
// container's confinement relies on (CVE-2019-16884, CVE-2023-28642).
func procAllows(e *entry) bool {
	bind := e.bind || e.Type == "bind"
	below, ok := strings.CutPrefix(e.rel, "proc/")
	switch {
	case ok:
		return bind && slices.Contains(procFiles, below)
	case e.rel == "proc":
		return !bind || e.Source == "/proc"
	}
	return true
}
