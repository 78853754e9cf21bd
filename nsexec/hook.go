package nsexec

import (
	"math"

	"golang.org/x/sys/unix"
)

// Hook says how a program ends that becomes a program of the runtime's, not of
// a container: with the privileges it has, and nothing of the daemon's but its
// stdio.
type Hook struct {
	Path      string
	Args, Env []string
	Dir       string // working directory; where it cannot be entered it stays what it was
}

// FinishHook turns the child into that program. It must come last.
func (p *Program) FinishHook(h Hook) {
	if h.Dir != "" {
		p.Step("change to working directory %q", h.Dir)
		p.Call(unix.SYS_CHDIR, p.Str(h.Dir)).IgnoreAll()
	}
	p.Call(unix.SYS_UMASK, Int(0o022))
	p.Step("close file descriptors")
	p.Call(unix.SYS_CLOSE_RANGE, Int(3), Int(uint32(math.MaxUint32)), Int(unix.CLOSE_RANGE_CLOEXEC))
	p.exec(h.Path, h.Args, h.Env, "", true)
}

// EnterPlace makes two directories, bound to the inputs returned, the root and
// the working directory. After Join they are another process's, which need not
// be the root of its mount namespace, where Join leads.
func (p *Program) EnterPlace() (root, cwd Reg) {
	root, cwd = p.Input("root"), p.Input("cwd")
	p.Step("enter the container's directories")
	p.Call(unix.SYS_FCHDIR, root.Arg())
	p.Call(unix.SYS_CHROOT, p.Str("."))
	p.Call(unix.SYS_FCHDIR, cwd.Arg())
	return root, cwd
}
