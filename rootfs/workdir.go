package rootfs

import (
	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

// workingDir makes process.cwd if there is none, as runc and crun do. If that
// fails, entering it will tell why.
func (c *Compiler) workingDir() {
	if c.spec.Process == nil {
		return
	}
	rel := inside(c.spec.Process.Cwd)
	if rel == "" {
		return
	}
	p := c.p
	p.Step("look for working directory %q", c.spec.Process.Cwd)
	there := p.Call(unix.SYS_OPENAT2, c.root.Arg(), p.Str(rel), c.how(unix.O_PATH|unix.O_DIRECTORY, pathResolve), nsexec.Int(24)).Store(c.dest)
	p.IfElse(there.IgnoreAll(), func() { c.close(c.dest) }, func() {
		c.pathBuffer()
		c.gate("make working directory "+rel, func(v *visit) error {
			_ = v.makePath(rel, true)
			return nil
		})
	})
}
