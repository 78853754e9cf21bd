package kcheck

import (
	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

func seccompFeatures() []Feature {
	action := func(a uint32) func(*env) error {
		return func(*env) error { return try(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, halves(a)) }
	}
	// The kernel looks at flags before it reads the filter, which is at NULL.
	flag := func(flags int) func(*env) error {
		return func(*env) error {
			return expect(try(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, nilArg), unix.EFAULT)
		}
	}
	return []Feature{
		{Name: "seccomp filter", Since: "3.17", Need: Used, Loses: "linux.seccomp is refused", probe: func(e *env) error {
			return e.child(0, func(p *nsexec.Program) { loadFilter(p, 0) })
		}},
		{Name: "seccomp KILL_PROCESS", Since: "4.14", Need: Used, Loses: "SCMP_ACT_KILL_PROCESS kills a thread only", probe: action(unix.SECCOMP_RET_KILL_PROCESS)},
		{Name: "seccomp LOG", Since: "4.14", Need: Used, Loses: "SCMP_ACT_LOG is refused", probe: action(unix.SECCOMP_RET_LOG)},
		{Name: "seccomp flag LOG", Since: "4.14", Need: Used, Loses: "the flag is refused", probe: flag(unix.SECCOMP_FILTER_FLAG_LOG)},
		{Name: "seccomp flag SPEC_ALLOW", Since: "4.17", Need: Used, Loses: "filtered processes run with speculation mitigated", probe: flag(unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW)},
		{Name: "seccomp flag TSYNC", Since: "3.17", Need: Used, Loses: "the flag is refused", probe: flag(unix.SECCOMP_FILTER_FLAG_TSYNC)},
		{Name: "seccomp USER_NOTIF", Since: "5.0", Need: Used, Loses: "SCMP_ACT_NOTIFY is refused", probe: action(unix.SECCOMP_RET_USER_NOTIF)},
		{Name: "seccomp listener", Since: "5.0", Need: Used, Loses: "SCMP_ACT_NOTIFY is refused", probe: func(e *env) error {
			return e.child(0, func(p *nsexec.Program) { loadFilter(p, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER) })
		}},
		{Name: "seccomp ADDFD", Since: "5.9", Need: Optional, Loses: "listeners cannot open files for containers", probe: addFD(0)},
		{Name: "seccomp ADDFD_FLAG_SEND", Since: "5.14", Need: Optional, Loses: "a file that a listener opened may be lost to a signal", probe: addFD(unix.SECCOMP_ADDFD_FLAG_SEND)},
		{Name: "seccomp flag WAIT_KILLABLE_RECV", Since: "5.19", Need: Used, Loses: "the flag is refused", probe: flag(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)},
	}
}

// loadFilter loads a filter that allows everything.
func loadFilter(p *nsexec.Program, flags int) nsexec.Reg {
	r := p.NewReg("listener")
	insn := p.Words(unix.SECCOMP_RET_ALLOW<<32 | unix.BPF_RET)
	prog := p.Words(1, 0)
	p.Poke(prog.Plus(8), insn)
	p.Call(unix.SYS_PRCTL, nsexec.Int(unix.PR_SET_NO_NEW_PRIVS), nsexec.Int(1), nsexec.Int(0), nsexec.Int(0), nsexec.Int(0))
	p.Call(unix.SYS_SECCOMP, nsexec.Int(unix.SECCOMP_SET_MODE_FILTER), nsexec.Int(flags), prog).Store(r)
	return r
}

// addFD asks a listener to answer a notification that does not exist.
func addFD(flags uint64) func(*env) error {
	return func(e *env) error {
		return expect(e.child(0, func(p *nsexec.Program) {
			r := loadFilter(p, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
			p.Step("answer a notification")
			// struct seccomp_notif_addfd: id, flags and srcfd, newfd and its
			// flags. The file to hand over is the listener itself, which is
			// descriptor 0: the child has closed all others but one.
			p.Call(unix.SYS_IOCTL, r.Arg(), nsexec.Int(uint64(unix.SECCOMP_IOCTL_NOTIF_ADDFD)), p.Words(^uint64(0), flags, 0))
		}), unix.ENOENT)
	}
}
