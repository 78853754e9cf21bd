package rootfs

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

// how is a struct open_how (openat2(2), Linux 5.6).
func (c *Compiler) how(flags, resolve uint64) nsexec.Arg {
	return c.p.Words(flags|unix.O_CLOEXEC, 0, resolve)
}

const pathResolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// openFlags say what open is to find.
type openFlags struct {
	dir     bool   // a directory; else anything, and an empty file if there is nothing
	strict  bool   // no component may be a link
	existed func() // emits what is done if it was there already
}

// open leaves an O_PATH fd of a path inside the root in c.dest and makes what
// is missing.
//
// The kernel resolves the path, links included, as if the root were "/". Two
// things it cannot do: make what a dangling link points to, and be sure about
// ".." while somebody renames or mounts (EAGAIN). Then the parent finds or
// makes the way (makepath.go) and the child opens that without any links.
func (c *Compiler) open(rel string, f openFlags) {
	p, resolve, flags := c.p, uint64(pathResolve), uint64(unix.O_PATH)
	if f.strict {
		resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	if f.dir {
		flags |= unix.O_DIRECTORY
	}
	at := func(r nsexec.Reg, flags uint64, rel string) nsexec.Insn {
		return p.Call(unix.SYS_OPENAT2, c.root.Arg(), p.Str(rel), c.how(flags, resolve), nsexec.Int(24)).Store(r)
	}
	var stuck []nsexec.Insn
	try := func(r nsexec.Reg, flags uint64, rel string) {
		if in := at(r, flags, rel); !f.strict {
			stuck = append(stuck, in.Ignore(unix.ENOENT, unix.EAGAIN))
		}
	}
	missing := func() {
		parent, names := c.root, strings.Split(rel, "/")
		for i, name := range names {
			last := i == len(names)-1
			if last && !f.dir {
				p.Call(unix.SYS_MKNODAT, parent.Arg(), p.Str(name), nsexec.Int(unix.S_IFREG|0o644), nsexec.Int(0)).Ignore(unix.EEXIST)
			} else {
				p.Call(unix.SYS_MKDIRAT, parent.Arg(), p.Str(name), nsexec.Int(0o755)).Ignore(unix.EEXIST)
			}
			if parent != c.root {
				c.close(parent)
			}
			if last {
				break
			}
			parent = c.fs
			try(parent, unix.O_PATH|unix.O_DIRECTORY, path.Join(names[:i+1]...))
		}
		try(c.dest, flags, rel)
		if !f.strict {
			p.Catch(func() { c.openByParent(rel, f.dir, flags) }, stuck...)
		}
	}
	first := at(c.dest, flags, rel).Ignore(unix.ENOENT)
	if !f.strict {
		first.Ignore(unix.ENOENT, unix.EAGAIN)
	}
	if f.existed != nil {
		p.IfElse(first, f.existed, missing)
	} else {
		p.IfError(first, missing)
	}
}

// find opens what must not be made, leaves it in c.dest and emits found, or
// missing, which may be nil, if there is nothing. Somebody who renames or mounts meanwhile may
// have it tried again: not below /proc, where no link leads up.
func (c *Compiler) find(rel string, flags uint64, found, missing func()) {
	p := c.p
	path, how := p.Str(rel), c.how(unix.O_PATH|flags, pathResolve)
	try := func() nsexec.Insn {
		return p.Call(unix.SYS_OPENAT2, c.root.Arg(), path, how, nsexec.Int(24)).Store(c.dest).Ignore(unix.ENOENT, unix.ENOTDIR)
	}
	first := try()
	if strings.HasPrefix(rel, "proc/") {
		if missing == nil {
			p.IfOK(first, found)
		} else {
			p.IfElse(first, found, missing)
		}
		return
	}
	var last nsexec.Insn
	p.IfError(first.Ignore(unix.ENOENT, unix.ENOTDIR, unix.EAGAIN), func() {
		again := try().Ignore(unix.ENOENT, unix.ENOTDIR, unix.EAGAIN)
		p.IfError(again, func() { last = try() })
	})
	found()
	if missing == nil {
		missing = func() {}
	}
	p.Catch(missing, last)
}

// pathBuffer makes room for a path that the parent writes.
func (c *Compiler) pathBuffer() {
	if c.path == nsexec.Nil {
		c.path = c.p.Buffer(maxPath)
	}
}

func (c *Compiler) openByParent(rel string, dir bool, flags uint64) {
	c.pathBuffer()
	c.gate("find "+rel, func(v *visit) error { return v.makePath(rel, dir) })
	c.p.Call(unix.SYS_OPENAT2, c.root.Arg(), c.path, c.how(flags, pathResolve|unix.RESOLVE_NO_SYMLINKS), nsexec.Int(24)).Store(c.dest)
}
