package rootfs

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

// how is a struct open_how (openat2(2), Linux 5.6).
func (c *compiler) how(flags, resolve uint64) nsexec.Arg {
	return c.p.Words(flags|unix.O_CLOEXEC, 0, resolve)
}

// open leaves an O_PATH fd of a path inside the root in c.dest and makes what is
// missing: directories, and an empty file when a file is to be mounted there.
// With strict no component may be a link.
func (c *compiler) open(rel string, isDir, strict bool) {
	p := c.p
	resolve := uint64(unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS)
	if strict {
		resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	flags := uint64(unix.O_PATH)
	if isDir {
		flags |= unix.O_DIRECTORY
	}
	at := func(r nsexec.Reg, flags uint64, rel string) nsexec.Insn {
		return p.Call(unix.SYS_OPENAT2, c.root.Arg(), p.Str(rel), c.how(flags, resolve), nsexec.Int(24)).Store(r)
	}
	first := at(c.dest, flags, rel).Ignore(unix.ENOENT)
	p.IfError(first, func() {
		parent, names := c.root, strings.Split(rel, "/")
		for i, name := range names {
			if i == len(names)-1 && !isDir {
				p.Call(unix.SYS_MKNODAT, parent.Arg(), p.Str(name), nsexec.Int(unix.S_IFREG|0o644), nsexec.Int(0)).Ignore(unix.EEXIST)
			} else {
				p.Call(unix.SYS_MKDIRAT, parent.Arg(), p.Str(name), nsexec.Int(0o755)).Ignore(unix.EEXIST)
			}
			if parent != c.root {
				c.close(parent)
			}
			last := i == len(names)-1
			if last {
				at(c.dest, flags, rel)
				break
			}
			at(c.dir(), unix.O_PATH|unix.O_DIRECTORY, path.Join(names[:i+1]...))
			parent = c.dir()
		}
	})
}

// dir is the register for a parent directory.
func (c *compiler) dir() nsexec.Reg { return c.fs }
