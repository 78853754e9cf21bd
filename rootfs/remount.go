package rootfs

import (
	"slices"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// remount changes what is mounted already. With bind, or where the file system
// is not the container's own, only the attributes of the mount change: those
// named, the others stay. Without, the file system is reconfigured as well
// (fspick(2), Linux 5.2), if this config has mounted it: any other would be
// changed for the whole guest.
func (c *Compiler) remount(e *entry) {
	p := c.p
	fstype := c.ownFileSystem(e)
	if len(e.data) > 0 && (e.bind || fstype == "") {
		p.Fail(sys.Unsupportedf("mount %s: remount with options of the file system (%s) works where the config has mounted a file system of its own and without bind", e.Destination, e.data[0]))
		return
	}
	p.Step("remount %s", e.Destination)
	c.find(e.rel, 0, func() { c.remountDest(fstype, e) }, func() {
		p.FailWith(unix.ENOENT, "remount "+e.Destination+": no such file or directory")
	})
}

func (c *Compiler) remountDest(fstype string, e *entry) {
	if !e.bind && fstype != "" {
		c.reconfigure(fstype, e)
	}
	if e.set|e.clr != 0 {
		c.setAttributes(c.dest, e.set, e.clr, 0)
	}
	if e.rset|e.rclr != 0 {
		c.setAttributes(c.dest, e.rset, e.rclr, unix.AT_RECURSIVE)
	}
	for _, f := range e.propagation {
		c.propagate(c.dest, f)
	}
	c.close(c.dest)
}

func (c *Compiler) reconfigure(fstype string, e *entry) {
	p := c.p
	options := e.data
	if !sharedSuper(fstype) {
		options = append(append([]string{}, e.super...), e.data...)
	}
	if len(options) == 0 {
		return
	}
	p.Call(unix.SYS_FSPICK, c.dest.Arg(), p.Str(""), nsexec.Int(unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)).Store(c.fs)
	c.fsOptions(options)
	p.Call(unix.SYS_FSCONFIG, c.fs.Arg(), nsexec.Int(unix.FSCONFIG_CMD_RECONFIGURE), nsexec.Nil, nsexec.Nil, nsexec.Int(0))
	c.close(c.fs)
}

// ownSuper are the types whose superblock is a new one with every mount: procfs
// since Linux 5.8.
var ownSuper = []string{"tmpfs", "ramfs", "proc", "devpts", "overlay", "hugetlbfs"}

// ownFileSystem is the type of what an earlier entry has mounted anew at e's
// destination, "" if nothing or if its superblock may serve others.
func (c *Compiler) ownFileSystem(e *entry) string {
	fstype := ""
	for i := range c.mounts {
		m := &c.mounts[i]
		switch {
		case m == e:
			return fstype
		case m.remount || m.rel != e.rel:
		case !c.isBind(m) && slices.Contains(ownSuper, m.Type):
			fstype = m.Type
		default:
			fstype = ""
		}
	}
	return fstype
}
