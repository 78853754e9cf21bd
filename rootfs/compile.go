package rootfs

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// Options is what a Compiler needs to know besides the spec.
type Options struct {
	Bundle     string // relative sources and root.path start here
	Namespaces uint64 // CLONE_NEW* flags of the namespaces that are not the guest's
	Cgroup     string // absolute path of the container's cgroup directory

	// Gate appends a gate to the program and sees to it that the function is
	// called when the child stands there. Without, nobody comes: good enough
	// for a plan to look at.
	Gate     func(name string, do GateHandler)
	Launcher *nsexec.Launcher // for what is done at gates

	// How the guest is looked at; those left nil look at the real one.
	Stat        func(name string) (fs.FileMode, error)                         // the kind of a bind source
	ParentMount func(dir string) (string, error)                               // the mount point a directory is on
	DeviceName  func(block bool, major, minor uint32) (name string, err error) // what the guest calls a device in /dev
	SELinux     func() bool                                                    // whether file systems take a context
}

// A Compiler turns the file system parts of a spec into instructions of a
// program, in three pieces so that its owner can put others between them:
// Open, then BecomeRoot if there is a user namespace, Build, then whatever
// wants to see the finished mounts from outside, Enter.
//
// Some things cannot be straight-line syscalls: the child waits at a gate then
// and its parent does them (Options.Gate).
//
// A Compiler is for one program and one goroutine. What the spec asks for and
// cannot be done becomes the program's error.
type Compiler struct {
	p      *nsexec.Program
	spec   *specs.Spec
	linux  *specs.Linux
	opt    Options
	mounts []entry

	root nsexec.Reg // the container's root, a mount of its own
	dest nsexec.Reg // O_PATH fd of the place being worked on
	tree nsexec.Reg // a detached mount
	fs   nsexec.Reg // a file system context, a parent directory, a mode
	mask nsexec.Reg // an attached empty tmpfs, once there is one

	id     nsexec.Arg   // statx of root, for telling whether a path is the root
	stat   nsexec.Arg   // room for statx of something else
	path   nsexec.Arg   // room for a path that the parent writes, once needed
	sealed []nsexec.Arg // cells with mounts that become read-only at the end
}

// entry is one of the spec's mounts, parsed.
type entry struct {
	*specs.Mount
	mountOptions
	rel    string     // the destination, below the root
	opened bool       // Open has done so already and left the tree in
	cell   nsexec.Arg // this cell
}

// What a config may ask for at most. It is hostile, and work for some of it
// grows with the square.
const (
	maxMounts  = 4096
	maxDevices = 4096
	maxOptions = 1024 // of one mount
)

// NewCompiler starts the file system of a container. It appends nothing yet.
func NewCompiler(p *nsexec.Program, spec *specs.Spec, opt Options) *Compiler {
	c := &Compiler{p: p, spec: spec, linux: spec.Linux, opt: opt}
	if c.linux == nil {
		c.linux = &specs.Linux{}
	}
	if spec.Root == nil || spec.Root.Path == "" {
		p.Fail(sys.Invalidf("root.path is missing from config.json"))
		c.spec = &specs.Spec{Root: &specs.Root{Path: "/"}}
	}
	c.fillOptions()
	if n := len(c.spec.Mounts); n > maxMounts {
		p.Fail(sys.Invalidf("mounts: there are %d, more than %d", n, maxMounts))
		c.spec = &specs.Spec{Root: c.spec.Root}
	}
	for i := range c.spec.Mounts {
		e, err := c.parse(&c.spec.Mounts[i])
		if err != nil {
			p.Fail(err)
		}
		c.mounts = append(c.mounts, e)
	}
	c.root, c.dest, c.tree, c.fs, c.mask = p.NewReg("root"), p.NewReg("dest"), p.NewReg("tree"), p.NewReg("fs"), p.NewReg("mask")
	c.id, c.stat = p.Buffer(statxSize), p.Buffer(statxSize)
	return c
}

func (c *Compiler) fillOptions() {
	if c.opt.Gate == nil {
		c.opt.Gate = func(name string, _ GateHandler) { c.p.Gate(name) }
	}
	if c.opt.Stat == nil {
		c.opt.Stat = statMode
	}
	if c.opt.ParentMount == nil {
		c.opt.ParentMount = parentMount
	}
	if c.opt.DeviceName == nil {
		c.opt.DeviceName = deviceName
	}
	if c.opt.SELinux == nil {
		c.opt.SELinux = selinuxEnabled
	}
}

// owns reports whether the container has a namespace that is not the guest's.
func (c *Compiler) owns(flag uint64) bool { return c.opt.Namespaces&flag != 0 }

func statMode(name string) (fs.FileMode, error) {
	st, err := os.Stat(name)
	if err != nil {
		return 0, err
	}
	return st.Mode(), nil
}

// Compile is Open, Build and Enter for a container without a user namespace.
func Compile(p *nsexec.Program, spec *specs.Spec, opt Options) *Compiler {
	c := NewCompiler(p, spec, opt)
	c.Open()
	c.Build()
	c.Enter()
	return c
}

// Open makes the container's root a mount. With a user namespace it also opens
// what mounts bind: the child still has the guest's root as its owner id then,
// and may pass directories that the container's root must not.
func (c *Compiler) Open() {
	c.prepareRoot()
	if !c.owns(unix.CLONE_NEWUSER) {
		return
	}
	for i := range c.mounts {
		if e := &c.mounts[i]; c.isBind(e) && c.p.Err() == nil {
			c.p.Step("open %s to mount it on %s", c.source(e), e.Destination)
			c.openSource(e)
			e.opened, e.cell = true, c.p.Words(0)
			c.p.Poke(e.cell, c.tree.Arg())
		}
	}
}

// Build mounts everything, makes devices and hides what is to be hidden.
func (c *Compiler) Build() {
	for i := range c.mounts {
		if c.p.Err() != nil {
			return
		}
		c.mount(&c.mounts[i])
	}
	if !c.ownDev() {
		c.devices()
	}
	c.workingDir()
	for _, path := range c.linux.ReadonlyPaths {
		c.readonlyPath(path)
	}
	c.maskedPaths(c.linux.MaskedPaths)
	c.seal()
}

// Enter makes the prepared root the process's root and working directory and
// lets go of the guest's mounts.
func (c *Compiler) Enter() {
	c.pivot()
	if c.spec.Root.Readonly {
		c.p.Step("make the root file system read-only")
		c.setAttributes(c.root, unix.MOUNT_ATTR_RDONLY, 0, 0)
	}
	c.close(c.root)
}

// seal makes those mounts read-only that had to be written to before.
func (c *Compiler) seal() {
	for _, cell := range c.sealed {
		c.p.Step("make mounts read-only")
		c.p.Load(c.tree, cell)
		c.setAttributes(c.tree, unix.MOUNT_ATTR_RDONLY, 0, 0)
		c.close(c.tree)
	}
}

// rootPath is the container's root as the guest sees it.
func (c *Compiler) rootPath() string {
	if r := c.spec.Root.Path; path.IsAbs(r) {
		return path.Clean(r)
	}
	return filepath.Join(c.opt.Bundle, c.spec.Root.Path)
}

// setAttributes changes a mount, or with AT_RECURSIVE in flags all below it
// too (mount_setattr(2), Linux 5.12). The atime flags are one field, which can
// only be cleared as a whole.
func (c *Compiler) setAttributes(r nsexec.Reg, set, clr, flags uint64) nsexec.Insn {
	if set&unix.MOUNT_ATTR__ATIME != 0 {
		clr |= unix.MOUNT_ATTR__ATIME
	}
	return c.mountSetattr(r, flags, set, clr, 0)
}

func (c *Compiler) mountSetattr(r nsexec.Reg, flags, set, clr, propagation uint64) nsexec.Insn {
	return c.p.Call(unix.SYS_MOUNT_SETATTR, r.Arg(), c.p.Str(""), nsexec.Int(unix.AT_EMPTY_PATH|flags), c.p.Words(set, clr, propagation, 0), nsexec.Int(unix.MOUNT_ATTR_SIZE_VER0))
}

// propagate sets the propagation of a mount to MS_* flags.
func (c *Compiler) propagate(r nsexec.Reg, flags uint64) {
	at := uint64(0)
	if flags&unix.MS_REC != 0 {
		at = unix.AT_RECURSIVE
	}
	c.mountSetattr(r, at, 0, 0, flags&^unix.MS_REC)
}

// Parts of struct statx (statx(2)) that the child looks at.
const (
	statxSize  = 256
	statxMode  = 0x1c // 16 bits
	statxIno   = 0x20
	statxRdev  = 0x80 // major and minor, 32 bits each
	statxMntID = 0x90 // Linux 5.8
)

// statx looks at what the register holds.
func (c *Compiler) statx(r nsexec.Reg, buf nsexec.Arg) {
	const stxMntID = 0x1000 // STATX_MNT_ID
	c.p.Call(unix.SYS_STATX, r.Arg(), c.p.Str(""), nsexec.Int(unix.AT_EMPTY_PATH), nsexec.Int(unix.STATX_INO|unix.STATX_TYPE|unix.STATX_MODE|stxMntID), buf)
}

func (c *Compiler) close(r nsexec.Reg) { c.p.Call(unix.SYS_CLOSE, r.Arg()) }

// inside cleans a path of the spec and makes it relative to the root.
func inside(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }
