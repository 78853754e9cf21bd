package rootfs

import (
	"fmt"
	"os"
	"path"
	"strings"

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

// ownDev reports whether the config brings a /dev of its own: then nothing is
// made in it, as in runc.
func (c *Compiler) ownDev() bool {
	for i := range c.mounts {
		if e := &c.mounts[i]; e.rel == "dev" && c.isBind(e) {
			return true
		}
	}
	return false
}

// devices makes nodes and links, one directory after the other.
func (c *Compiler) devices() {
	p := c.p
	if n := len(c.linux.Devices); n > maxDevices {
		p.Fail(sys.Invalidf("linux.devices: there are %d, more than %d", n, maxDevices))
		return
	}
	named := map[string]bool{}
	nodes := make([]node, 0, len(c.linux.Devices)+len(defaultDevices))
	for i := range c.linux.Devices {
		n, err := parseDevice(&c.linux.Devices[i])
		if err != nil {
			p.Fail(err)
			return
		}
		named[n.rel] = true
		nodes = append(nodes, n)
	}
	for i := range defaultDevices {
		if n, _ := parseDevice(&defaultDevices[i]); !named[n.rel] {
			nodes = append(nodes, n)
		}
	}
	dir := "" // what is open in c.dest
	for _, n := range nodes {
		if p.Err() != nil {
			return
		}
		if c.owns(unix.CLONE_NEWUSER) && n.kind != unix.S_IFIFO {
			c.bindDevice(n)
			continue
		}
		p.Step("make device %s", n.Path)
		dir = c.changeDir(dir, path.Dir(n.rel))
		c.makeNode(n)
		if c.owns(unix.CLONE_NEWUSER) {
			dir = c.changeDir(dir, "")
		}
	}
	p.Step("make links in /dev")
	c.changeDir(dir, "dev")
	for _, l := range devLinks {
		p.Call(unix.SYS_SYMLINKAT, p.Str(l[0]), c.dest.Arg(), p.Str(l[1])).Ignore(unix.EEXIST)
	}
	if c.spec.Process != nil && c.spec.Process.Terminal { // while /dev can be written to
		p.Call(unix.SYS_MKNODAT, c.dest.Arg(), p.Str("console"), nsexec.Int(unix.S_IFREG|0o600), nsexec.Int(0)).Ignore(unix.EEXIST)
	}
	c.close(c.dest)
}

// changeDir has one directory in c.dest instead of another; "" is none.
func (c *Compiler) changeDir(from, to string) string {
	if from != "" && from != to {
		c.close(c.dest)
	}
	if to != "" && from != to {
		c.open(to, openFlags{dir: true})
	}
	return to
}

// node is a device of the spec, checked.
type node struct {
	*specs.LinuxDevice
	rel          string // its path inside the root
	kind, perm   uint32 // S_IF* and the rest of the mode
	major, minor uint32
}

func parseDevice(d *specs.LinuxDevice) (node, error) {
	n := node{LinuxDevice: d, rel: inside(d.Path), perm: 0o666, major: uint32(d.Major), minor: uint32(d.Minor)}
	n.kind = map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}[d.Type]
	switch {
	case n.kind == 0:
		return n, sys.Invalidf("linux.devices: %s is of type %q, which is not c, u, b or p", d.Path, d.Type)
	case !path.IsAbs(d.Path) || n.rel == "" || len(d.Path) >= maxPath:
		return n, sys.Invalidf("linux.devices: %.100q is not an absolute path below /", d.Path)
	case n.kind == unix.S_IFIFO:
		n.major, n.minor = 0, 0
	case d.Major < 0 || d.Major >= 1<<12 || d.Minor < 0 || d.Minor >= 1<<20: // what dev_t holds
		return n, sys.Invalidf("linux.devices: %s has the numbers %d:%d", d.Path, d.Major, d.Minor)
	}
	if d.FileMode != nil { // some writers leave the type in it
		n.perm = uint32(*d.FileMode) & 0o7777
		if n.perm&(unix.S_ISUID|unix.S_ISGID) != 0 {
			return n, sys.Invalidf("linux.devices: %s has fileMode %#o, which makes no sense for a device", d.Path, n.perm)
		}
	}
	return n, nil
}

// makeNode makes a node in the directory in c.dest. What is there already must
// be the same.
func (c *Compiler) makeNode(n node) {
	p := c.p
	name := p.Str(path.Base(n.rel))
	made := p.Call(unix.SYS_MKNODAT, c.dest.Arg(), name, nsexec.Int(n.kind|n.perm), nsexec.Int(unix.Mkdev(n.major, n.minor))).Ignore(unix.EEXIST)
	there := func() {
		p.Call(unix.SYS_STATX, c.dest.Arg(), name, nsexec.Int(unix.AT_SYMLINK_NOFOLLOW), nsexec.Int(unix.STATX_TYPE|unix.STATX_MODE), c.stat)
		c.checkNode(n, unix.EEXIST, "make device "+n.Path+": something else is there already")
	}
	uid, gid := n.UID, n.GID
	if uid == nil && gid == nil {
		p.IfError(made, there)
		return
	}
	keep := ^uint32(0)
	if uid == nil {
		uid = &keep
	}
	if gid == nil {
		gid = &keep
	}
	p.IfElse(made, func() {
		p.Call(unix.SYS_FCHOWNAT, c.dest.Arg(), name, nsexec.Int(*uid), nsexec.Int(*gid), nsexec.Int(unix.AT_SYMLINK_NOFOLLOW))
	}, there)
}

// checkNode ends the launch unless the statx in c.stat is of the device. The
// kind is compared by the upper byte of the mode, in which setuid, setgid and
// sticky are not set and "readable by its owner" may be.
func (c *Compiler) checkNode(n node, errno unix.Errno, text string) {
	p, kind := c.p, uint64(n.kind>>8)
	p.FailUnlessEqual(errno, text, c.stat.Plus(statxRdev), p.Words(uint64(n.major)|uint64(n.minor)<<32))
	p.Poke(c.stat.Plus(statxMode+2), nsexec.Int(0)) // what follows the mode
	p.FailUnlessEqual(errno, text, c.stat.Plus(statxMode+1), p.Words(kind), p.Words(kind|1))
}

// bindDevice shows the guest's node: a user namespace may not make any
// (mknod(2)). Owner and mode are the guest's.
func (c *Compiler) bindDevice(n node) {
	p := c.p
	source := "/" + n.rel
	if !isDefaultDevice(n) {
		name, err := c.opt.DeviceName(n.kind == unix.S_IFBLK, n.major, n.minor)
		if err != nil {
			p.Fail(fmt.Errorf("linux.devices: %s: %w", n.Path, err))
			return
		}
		source = "/dev/" + name
	}
	e := &entry{Mount: &specs.Mount{Destination: n.Path, Source: source}, mountOptions: mountOptions{bind: true}, rel: n.rel}
	p.Step("mount %s on %s", source, n.Path)
	p.Call(unix.SYS_OPEN_TREE, nsexec.Int(unix.AT_FDCWD), p.Str(source), nsexec.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)).Store(c.tree)
	c.statx(c.tree, c.stat)
	c.checkNode(n, unix.ENODEV, fmt.Sprintf("mount %s on %s: it is not the guest's device %d:%d", source, n.Path, n.major, n.minor))
	c.open(n.rel, openFlags{})
	c.attach(e)
}

func isDefaultDevice(n node) bool {
	for _, d := range defaultDevices {
		if d.Path == "/"+n.rel && uint32(d.Major) == n.major && uint32(d.Minor) == n.minor && n.kind == unix.S_IFCHR {
			return true
		}
	}
	return false
}

// deviceName asks sysfs what devtmpfs calls a device.
func deviceName(block bool, major, minor uint32) (string, error) {
	kind := "char"
	if block {
		kind = "block"
	}
	data, err := os.ReadFile(fmt.Sprintf("/sys/dev/%s/%d:%d/uevent", kind, major, minor))
	if os.IsNotExist(err) {
		return "", sys.Mark(sys.ErrNotFound, fmt.Errorf("the guest has no %s device %d:%d", kind, major, minor))
	}
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			return name, nil
		}
	}
	return "", sys.Mark(sys.ErrNotFound, fmt.Errorf("the guest has no node for the %s device %d:%d", kind, major, minor))
}
