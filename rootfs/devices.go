package rootfs

import (
	"path"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// defaultDevices are those the runtime must supply (config-linux.md, "Default
// Devices"); /dev/console is made with the terminal, /dev/ptmx is a link.
var defaultDevices = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
	{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
	{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

var devLinks = [][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
}

// devices makes nodes and links.
func (c *compiler) devices(extra []specs.LinuxDevice) {
	p := c.p
	named := map[string]bool{}
	for _, d := range extra {
		named[path.Clean(d.Path)] = true
	}
	for _, d := range defaultDevices {
		if !named[d.Path] {
			c.device(d)
		}
	}
	for _, d := range extra {
		c.device(d)
	}
	p.Step("make links in /dev")
	c.open("dev", true, false)
	for _, l := range devLinks {
		p.Call(unix.SYS_SYMLINKAT, p.Str(l[0]), c.dest.Arg(), p.Str(l[1])).Ignore(unix.EEXIST)
	}
	c.close(c.dest)
}

func (c *compiler) device(d specs.LinuxDevice) {
	p := c.p
	p.Step("make device %s", d.Path)
	mode := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}[d.Type]
	rel := inside(d.Path)
	if mode == 0 || !path.IsAbs(d.Path) || rel == "" {
		p.Fail(sys.Invalidf("linux.devices: %q of type %q", d.Path, d.Type))
		return
	}
	if d.Major < 0 || d.Major >= 1<<32 || d.Minor < 0 || d.Minor >= 1<<32 {
		p.Fail(sys.Invalidf("linux.devices: %s has numbers %d:%d", d.Path, d.Major, d.Minor))
		return
	}
	if c.opt.UserNS {
		c.bind(d.Path, &specs.Mount{Destination: d.Path, Source: d.Path}, mountOptions{bind: true})
		return
	}
	c.open(path.Dir(rel), true, false)
	perm := uint32(0o666)
	if d.FileMode != nil {
		perm = uint32(*d.FileMode) & 0o7777
	}
	name := p.Str(path.Base(rel))
	made := p.Call(unix.SYS_MKNODAT, c.dest.Arg(), name, nsexec.Int(mode|perm), nsexec.Int(unix.Mkdev(uint32(d.Major), uint32(d.Minor)))).Ignore(unix.EEXIST)
	p.IfElse(made, func() { c.chown(d, name) }, func() {
		buf := p.Buffer(statxSize)
		p.Call(unix.SYS_STATX, c.dest.Arg(), name, nsexec.Int(unix.AT_SYMLINK_NOFOLLOW), nsexec.Int(unix.STATX_TYPE), buf)
		p.FailUnlessEqual(unix.EEXIST, "make device "+d.Path+": something else is there already",
			buf.Plus(statxRdev), p.Words(uint64(d.Major)|uint64(d.Minor)<<32))
	})
	c.close(c.dest)
}

func (c *compiler) chown(d specs.LinuxDevice, name nsexec.Arg) {
	if d.UID == nil && d.GID == nil {
		return
	}
	var uid, gid uint32
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	c.p.Call(unix.SYS_FCHOWNAT, c.dest.Arg(), name, nsexec.Int(uid), nsexec.Int(gid), nsexec.Int(unix.AT_SYMLINK_NOFOLLOW))
}
