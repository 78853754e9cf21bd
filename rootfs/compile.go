package rootfs

import (
	"io/fs"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// Options is what Compile needs to know besides the spec.
type Options struct {
	Bundle   string                            // relative sources and root.path start here
	UserNS   bool                              // device nodes cannot be made: bind the guest's
	CgroupNS bool                              // else CgroupDir is bound where a cgroup mount is asked for
	Cgroup   string                            // absolute path of the container's cgroup directory
	Stat     func(string) (fs.FileMode, error) // os.Stat, as far as modes go; a test's own in golden tests
}

// compiler carries what the emitting functions share.
type compiler struct {
	p    *nsexec.Program
	spec *specs.Spec
	opt  Options

	root nsexec.Reg // the container's root, a mount of its own
	dest nsexec.Reg // O_PATH fd of the place being worked on
	tree nsexec.Reg // a detached mount
	fs   nsexec.Reg // a file system context, a parent directory
	mask nsexec.Reg // an attached empty tmpfs, once there is one
	id   nsexec.Arg // statx of root, for telling whether a path is the root
}

// Compile appends everything from a fresh mount namespace to a finished root
// file system that is the process's root and working directory. The program's
// own error is set when the spec asks for what cannot be done.
func Compile(p *nsexec.Program, spec *specs.Spec, opt Options) {
	if spec.Root == nil || spec.Root.Path == "" {
		p.Fail(sys.Invalidf("root.path is missing from config.json"))
		return
	}
	c := &compiler{p: p, spec: spec, opt: opt,
		root: p.NewReg("root"), dest: p.NewReg("dest"), tree: p.NewReg("tree"), fs: p.NewReg("fs"), mask: p.NewReg("mask")}
	linux := spec.Linux
	if linux == nil {
		linux = &specs.Linux{}
	}
	c.prepareRoot(linux.RootfsPropagation)
	for i := range spec.Mounts {
		c.mount(&spec.Mounts[i])
	}
	if !c.ownDev() {
		c.devices(linux.Devices)
	}
	for _, path := range linux.ReadonlyPaths {
		c.readonlyPath(path)
	}
	c.maskedPaths(linux.MaskedPaths)
	c.pivot()
	if spec.Root.Readonly {
		p.Step("make the root file system read-only")
		p.Call(unix.SYS_MOUNT_SETATTR, c.root.Arg(), p.Str(""), nsexec.Int(unix.AT_EMPTY_PATH), c.attr(unix.MOUNT_ATTR_RDONLY, 0, 0), nsexec.Int(unix.MOUNT_ATTR_SIZE_VER0))
	}
	p.Call(unix.SYS_CLOSE, c.root.Arg())
}

// rootPath is the container's root as the guest sees it.
func (c *compiler) rootPath() string {
	if r := c.spec.Root.Path; path.IsAbs(r) {
		return path.Clean(r)
	}
	return filepath.Join(c.opt.Bundle, c.spec.Root.Path)
}

// prepareRoot cuts the mount namespace off from the guest's and mounts the root
// file system over itself: pivot_root(2) wants a mount point.
func (c *compiler) prepareRoot(propagation string) {
	p := c.p
	var flag uint64
	switch propagation {
	case "", "slave", "rslave":
		flag = unix.MS_SLAVE | unix.MS_REC
	case "private", "rprivate":
		flag = unix.MS_PRIVATE | unix.MS_REC
	default:
		p.Fail(sys.Unsupportedf("linux.rootfsPropagation %q is not supported yet", propagation))
		return
	}
	p.Step("make mounts of the guest %s", propagationName(flag))
	p.Call(unix.SYS_MOUNT, nsexec.Nil, p.Str("/"), nsexec.Nil, nsexec.Int(flag), nsexec.Nil)
	root := c.rootPath()
	p.Step("prepare root file system %s", root)
	p.Call(unix.SYS_OPEN_TREE, nsexec.Int(unix.AT_FDCWD), p.Str(root), nsexec.Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)).Store(c.root)
	p.Call(unix.SYS_MOVE_MOUNT, c.root.Arg(), p.Str(""), nsexec.Int(unix.AT_FDCWD), p.Str(root), nsexec.Int(unix.MOVE_MOUNT_F_EMPTY_PATH))
	p.Call(unix.SYS_FCHDIR, c.root.Arg())
	c.id = p.Buffer(statxSize)
	c.statx(c.root, c.id)
}

func propagationName(flag uint64) string {
	if flag&unix.MS_PRIVATE != 0 {
		return "private"
	}
	return "slaves"
}

// pivot makes the prepared root the root and lets go of the guest's mounts
// (pivot_root(2), "pivot_root(".", ".")").
func (c *compiler) pivot() {
	p := c.p
	dot := p.Str(".")
	p.Step("pivot_root into %s", c.rootPath())
	p.Call(unix.SYS_FCHDIR, c.root.Arg())
	p.Call(unix.SYS_PIVOT_ROOT, dot, dot)
	p.Step("unmount the guest's root")
	p.Call(unix.SYS_UMOUNT2, dot, nsexec.Int(unix.MNT_DETACH))
	p.Call(unix.SYS_CHDIR, p.Str("/"))
}

// ownDev reports whether the config brings a /dev of its own: then nothing is
// made in it, as in runc.
func (c *compiler) ownDev() bool {
	for _, m := range c.spec.Mounts {
		if o, err := parseOptions(m.Options); err == nil && path.Clean(m.Destination) == "/dev" && (o.bind || m.Type == "bind") {
			return true
		}
	}
	return false
}

// attr is a struct mount_attr (mount_setattr(2), Linux 5.12).
func (c *compiler) attr(set, clr, propagation uint64) nsexec.Arg {
	return c.p.Words(set, clr, propagation, 0)
}

// Parts of struct statx (statx(2)) that the child compares.
const (
	statxSize  = 256
	statxIno   = 0x20
	statxRdev  = 0x80 // major and minor, 32 bits each
	statxMntID = 0x90 // Linux 5.8
)

func (c *compiler) statx(r nsexec.Reg, buf nsexec.Arg) {
	const stxMntID = 0x1000 // STATX_MNT_ID
	c.p.Call(unix.SYS_STATX, r.Arg(), c.p.Str(""), nsexec.Int(unix.AT_EMPTY_PATH), nsexec.Int(unix.STATX_INO|stxMntID), buf)
}

func (c *compiler) close(r nsexec.Reg) { c.p.Call(unix.SYS_CLOSE, r.Arg()) }

// inside cleans a path of the spec and makes it relative to the root.
func inside(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }
