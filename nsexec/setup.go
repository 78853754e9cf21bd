package nsexec

import (
	"math"
	"strconv"

	"golang.org/x/sys/unix"
)

// Stdio are the inputs that become fds 0, 1 and 2.
type Stdio [3]Reg

// SetupStdio makes a new session and puts the three inputs in place. It comes
// first in a program: from then on nothing of the daemon's own stdio is open.
func (p *Program) SetupStdio() Stdio {
	s := Stdio{p.Input("stdin"), p.Input("stdout"), p.Input("stderr")}
	p.Step("set up stdio")
	for i, r := range s {
		p.Call(unix.SYS_DUP3, r.Arg(), Int(i), Int(0))
	}
	p.Call(unix.SYS_SETSID)
	p.Call(unix.SYS_UMASK, Int(0)) // modes are exact while the container is built
	return s
}

// WriteFile writes a value to an existing file. It is meant for /proc/self
// while the guest's own procfs is still the one that is seen.
func (p *Program) WriteFile(path, value string) {
	fd := p.tmp()
	p.Step("write %q to %s", value, path)
	p.Call(unix.SYS_OPENAT, Int(unix.AT_FDCWD), p.Str(path), Int(unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW), Int(0)).Store(fd)
	p.Call(unix.SYS_WRITE, fd.Arg(), p.Str(value), Int(len(value)))
	p.Call(unix.SYS_CLOSE, fd.Arg())
}

// SetOOMScoreAdj sets how likely the kernel's OOM killer takes the process
// (proc_pid_oom_score_adj(5)). It must run before the container's /proc is seen.
func (p *Program) SetOOMScoreAdj(adj int) {
	p.WriteFile("/proc/self/oom_score_adj", strconv.Itoa(adj))
}

// tmp is one register that every short sequence may use.
func (p *Program) tmp() Reg {
	if p.scratch == 0 {
		p.scratch = p.NewReg("fd")
	}
	return p.scratch
}

// Join enters the namespaces named by flags of the process whose pidfd is
// bound to the returned input (setns(2) with a pidfd, Linux 5.8). The pid
// namespace is entered by Launch.PIDNS instead.
func (p *Program) Join(flags uint64) Reg {
	r := p.Input("container")
	p.Step("join the container's namespaces")
	p.Call(unix.SYS_SETNS, r.Arg(), Int(flags&^unix.CLONE_NEWPID))
	return r
}

// JoinLate is Join for a process that is to be born into the container's pid
// namespace later (Finish.ForkLate): until then it is where nothing in the
// container sees it.
func (p *Program) JoinLate(flags uint64) Reg {
	r := p.Input("container")
	p.Step("join the container's namespaces")
	p.Call(unix.SYS_SETNS, r.Arg(), Int(flags))
	return r
}

// JoinFile enters one namespace by an fd of its file, bound to the returned input.
func (p *Program) JoinFile(name string, flag uint64) Reg {
	r := p.Input(name)
	p.Step("join the %s namespace", name)
	p.Call(unix.SYS_SETNS, r.Arg(), Int(flag))
	return r
}

// BecomeRoot takes uid and gid 0 of a user namespace whose maps the parent has
// just written.
func (p *Program) BecomeRoot() {
	p.Step("become root of the user namespace (is id 0 mapped?)")
	p.Call(unix.SYS_SETRESGID, Int(0), Int(0), Int(0))
	p.Call(unix.SYS_SETRESUID, Int(0), Int(0), Int(0))
}

// SetHostname sets the UTS names; empty ones are left alone.
func (p *Program) SetHostname(host, domain string) {
	if host != "" {
		p.Step("set hostname %q", host)
		p.Call(unix.SYS_SETHOSTNAME, p.Str(host), Int(len(host)))
	}
	if domain != "" {
		p.Step("set domainname %q", domain)
		p.Call(unix.SYS_SETDOMAINNAME, p.Str(domain), Int(len(domain)))
	}
}

// LoopbackUp raises lo in a new network namespace (netdevice(7)).
func (p *Program) LoopbackUp() {
	fd := p.tmp()
	p.Step("set loopback interface up")
	ifreq := make([]byte, 40)
	copy(ifreq, "lo")
	ifreq[16] = unix.IFF_UP
	p.Call(unix.SYS_SOCKET, Int(unix.AF_INET), Int(unix.SOCK_DGRAM|unix.SOCK_CLOEXEC), Int(0)).Store(fd)
	p.Call(unix.SYS_IOCTL, fd.Arg(), Int(unix.SIOCSIFFLAGS), p.Bytes(ifreq))
	p.Call(unix.SYS_CLOSE, fd.Arg())
}

// SetupTerminal allocates a pty on the container's devpts, makes its slave fds
// 0-2 and the controlling terminal, and, for a container's init, /dev/console.
// The master's number is in the returned register at the next gate. It runs
// inside the container's root; nothing it opens can be a link or another file
// system planted by the image (CVE-2025-52565). With late it does not become the
// controlling terminal yet: that is for the process that is forked late.
func (p *Program) SetupTerminal(uid uint32, console, late bool) Reg {
	master, slave, dir := p.NewReg("ptmx"), p.NewReg("tty"), p.tmp()
	p.Step("allocate a terminal on /dev/pts")
	p.openDir("/dev/pts", dir)
	buf := p.Buffer(128)
	p.Call(unix.SYS_FSTATFS, dir.Arg(), buf)
	p.FailUnlessEqual(unix.ENODEV, "allocate a terminal: /dev/pts of the container is not a devpts mount", buf, p.Words(unix.DEVPTS_SUPER_MAGIC))
	p.Call(unix.SYS_OPENAT, dir.Arg(), p.Str("ptmx"), Int(unix.O_RDWR|unix.O_NOCTTY|unix.O_NOFOLLOW|unix.O_CLOEXEC), Int(0)).Store(master)
	p.Call(unix.SYS_CLOSE, dir.Arg())
	p.keepClear(master)
	p.Call(unix.SYS_IOCTL, master.Arg(), Int(unix.TIOCSPTLCK), p.Buffer(8))
	p.Call(unix.SYS_IOCTL, master.Arg(), Int(unix.TIOCGPTPEER), Int(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)).Store(slave)
	for i := range 3 {
		p.Call(unix.SYS_DUP3, slave.Arg(), Int(i), Int(0))
	}
	p.Call(unix.SYS_FCHOWN, Int(0), Int(uid), Int(uint32(math.MaxUint32)))
	if !late {
		p.controlTerminal()
	}
	if console {
		p.mountConsole(slave, dir)
	}
	return master
}

// controlTerminal makes stdin the controlling terminal of a session leader.
func (p *Program) controlTerminal() {
	p.Call(unix.SYS_IOCTL, Int(0), Int(unix.TIOCSCTTY), Int(0))
}

// mountConsole binds the slave over /dev/console, all by fd.
func (p *Program) mountConsole(slave, dir Reg) {
	tree, file := p.NewReg("console"), p.NewReg("consolefile")
	p.Step("mount the terminal on /dev/console")
	p.openDir("/dev", dir)
	p.Call(unix.SYS_MKNODAT, dir.Arg(), p.Str("console"), Int(unix.S_IFREG|0o600), Int(0)).Ignore(unix.EEXIST)
	p.Call(unix.SYS_OPENAT, dir.Arg(), p.Str("console"), Int(unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC), Int(0)).Store(file)
	p.Call(unix.SYS_OPEN_TREE, slave.Arg(), p.Str(""), Int(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)).Store(tree)
	p.Call(unix.SYS_MOVE_MOUNT, tree.Arg(), p.Str(""), file.Arg(), p.Str(""), Int(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
	for _, r := range []Reg{tree, file, dir} {
		p.Call(unix.SYS_CLOSE, r.Arg())
	}
}

func (p *Program) openDir(path string, r Reg) {
	how := p.Words(unix.O_DIRECTORY|unix.O_CLOEXEC, 0, unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_IN_ROOT)
	p.Call(unix.SYS_OPENAT2, Int(unix.AT_FDCWD), p.Str(path), how, Int(24)).Store(r)
}
