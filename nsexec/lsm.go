package nsexec

import (
	"golang.org/x/sys/unix"
)

// SetAppArmor has the coming execve change to an AppArmor profile
// (apparmor(7); /proc/self/attr/apparmor, Linux 5.8). It must run before the
// container's /proc is seen (CVE-2019-16884, CVE-2025-52881): what has been
// written stays with the process until it executes a program.
func (p *Program) SetAppArmor(profile string) {
	const absent = "process.apparmorProfile: this kernel runs without AppArmor"
	p.Step("set the AppArmor profile %q", profile)
	fd := p.tmp()
	opened := p.openAttr(fd, "/proc/self/attr/apparmor/exec").Ignore(unix.ENOENT)
	p.IfError(opened, func() { p.FailWith(unix.EOPNOTSUPP, absent) })
	p.checkProc(fd)
	change := "exec " + profile
	write := func() Insn { return p.Call(unix.SYS_WRITE, fd.Arg(), p.Str(change), Int(len(change))) }
	p.IfError(write().Ignore(unix.EINVAL, unix.ENOENT), func() { // which of them?
		p.Step("process.apparmorProfile %q is not loaded", profile)
		p.IfError(write().Ignore(unix.EINVAL), func() { p.FailWith(unix.EOPNOTSUPP, absent) })
	})
	p.Call(unix.SYS_CLOSE, fd.Arg())
}

// SetSELinux has the coming execve change to an SELinux context, and keys made
// until then carry it (selinux(8), setexeccon(3), setkeycreatecon(3)). It must
// run before the container's /proc is seen, as SetAppArmor.
func (p *Program) SetSELinux(label string) {
	const absent = "process.selinuxLabel: this kernel runs without SELinux"
	p.Step("set the SELinux label %q", label)
	fd := p.tmp()
	// Without SELinux another module would be given what is written. The
	// directory exists if SELinux is there, even where nothing is mounted on it.
	active := p.Call(unix.SYS_OPENAT, Int(unix.AT_FDCWD), p.Str("/sys/fs/selinux"), Int(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC), Int(0)).Store(fd).Ignore(unix.ENOENT)
	p.IfError(active, func() { p.FailWith(unix.EOPNOTSUPP, absent) })
	p.Call(unix.SYS_CLOSE, fd.Arg())
	for _, name := range []string{"/proc/self/attr/exec", "/proc/self/attr/keycreate"} {
		p.openAttr(fd, name)
		p.checkProc(fd)
		written := p.Call(unix.SYS_WRITE, fd.Arg(), p.Str(label), Int(len(label))).Ignore(unix.EINVAL)
		p.IfError(written, func() {
			p.FailWith(unix.EINVAL, "process.selinuxLabel: "+label+" is not a context of the loaded policy")
		})
		p.Call(unix.SYS_CLOSE, fd.Arg())
	}
}

func (p *Program) openAttr(fd Reg, path string) Insn {
	return p.Call(unix.SYS_OPENAT, Int(unix.AT_FDCWD), p.Str(path), Int(unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW), Int(0)).Store(fd)
}

// checkProc makes sure that an fd belongs to a procfs (proc(5), statfs(2)).
func (p *Program) checkProc(fd Reg) {
	buf := p.Buffer(128)
	p.Call(unix.SYS_FSTATFS, fd.Arg(), buf)
	p.FailUnlessEqual(unix.ENODEV, "/proc is not a procfs", buf, p.Words(unix.PROC_SUPER_MAGIC))
}
