package nsexec

import (
	"math"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Seccomp is a compiled filter for the process.
type Seccomp struct {
	Filter []unix.SockFilter
	Flags  uint // SECCOMP_FILTER_FLAG_*
	// Deadly: what it does not know ends the process instead of failing.
	Deadly bool
	// Listener is called if the filter has a listener (NEW_LISTENER, Linux 5.0),
	// when the child has it, by the number in the register, and before anything
	// else that the filter could stop. It appends a gate at which the parent
	// fetches it: at execve the child loses it.
	Listener func(Reg)
}

// Finish says how a program ends.
type Finish struct {
	Process *specs.Process
	Path    string   // the program; "" to look up the process's first argument
	Limits  Limits   // of the process; the zero value if its parent sets them at the gate
	Gate    string   // name of a gate right before the program is loaded, "" for none
	Keyring string   // name of a new session keyring, "" to keep the daemon's
	Seccomp *Seccomp // nil: unconfined
	// ForkLate has the process born into the pid namespace of the last Join only
	// when all its privileges are gone: for a container whose processes may trace
	// others. It needs a Gate, at which the parent follows (Child.Follow).
	ForkLate bool
	// Grantable are the capabilities the process can be given, as bits.
	Grantable uint64
	// Home becomes HOME if the environment has none, or an empty one, and this
	// is not empty. It can be changed at the gate (SetHome).
	Home string
}

// Finished is what is to be known about the end of a program.
type Finished struct {
	Gate     GateID // the one named by Finish.Gate
	Forked   Refork // with Finish.ForkLate
	Warnings []string
}

// Finish turns the child into the user's process: resource limits, identity,
// capabilities, working directory, seccomp, execve. It must come last.
//
// The order matters: what needs privilege comes before the identity changes,
// what a strict seccomp filter might forbid comes before the filter, and
// without noNewPrivileges the filter needs CAP_SYS_ADMIN, so it comes early.
func (p *Program) Finish(f Finish) (done Finished) {
	proc := f.Process
	caps, warnings := parseCaps(proc.Capabilities, f.Grantable)
	done.Warnings = warnings
	if f.Keyring != "" {
		p.Step("join a new session keyring")
		p.Call(unix.SYS_KEYCTL, Int(unix.KEYCTL_JOIN_SESSION_KEYRING), p.Str(f.Keyring)).Ignore(unix.ENOSYS)
	}
	p.setLimits(f.Limits)
	p.dropBounding(caps)
	nocwd := p.changeDir(proc.Cwd)
	p.placeFiles()
	// Before the filter: profiles older than close_range(2) forbid it.
	p.Step("close file descriptors")
	p.Call(unix.SYS_CLOSE_RANGE, Int(3+p.files.n), Int(uint32(math.MaxUint32)), Int(unix.CLOSE_RANGE_CLOEXEC))
	if !proc.NoNewPrivileges {
		p.loadSeccomp(f.Seccomp)
	}
	p.setUser(proc.User)
	p.setCaps(caps)
	p.IfNonZero(nocwd, func() { p.chdir(proc.Cwd) })
	if proc.NoNewPrivileges {
		p.Step("set no_new_privs")
		p.Call(unix.SYS_PRCTL, Int(unix.PR_SET_NO_NEW_PRIVS), Int(1), Int(0), Int(0), Int(0))
	}
	if f.ForkLate {
		done.Forked = p.Refork(0)
		p.Step("make a session of its own")
		p.Call(unix.SYS_SETSID)
		if proc.Terminal {
			p.controlTerminal()
		}
	}
	if f.Gate != "" {
		done.Gate = p.Gate(f.Gate)
	}
	if proc.NoNewPrivileges {
		p.loadSeccomp(f.Seccomp)
	}
	p.exec(f.Path, proc.Args, proc.Env, f.Home, f.Seccomp == nil || !f.Seccomp.Deadly)
	return done
}

// changeDir enters the working directory with the privileges of root, as runc
// does; a directory that only the user may enter (NFS, FUSE) is tried again
// later: then the register is not 0.
func (p *Program) changeDir(cwd string) (failed Reg) {
	if !strings.HasPrefix(cwd, "/") {
		p.Fail(sys.Invalidf("process.cwd %q is not an absolute path", cwd))
	}
	failed = p.NewReg("nocwd")
	p.mem.setReg(failed, 1)
	p.Step("change to working directory %q", cwd)
	in := p.Call(unix.SYS_CHDIR, p.Str(cwd)).Ignore(unix.EACCES).Store(failed)
	p.IfOK(in, func() { p.checkDir(cwd) })
	return failed
}

func (p *Program) chdir(cwd string) {
	p.Step("change to working directory %q", cwd)
	p.Call(unix.SYS_CHDIR, p.Str(cwd))
	p.checkDir(cwd)
}

// checkDir refuses a working directory outside the container's root, which the
// kernel reports as "(unreachable)..." (getcwd(3); CVE-2024-21626).
func (p *Program) checkDir(cwd string) {
	buf := p.Buffer(4096)
	p.Call(unix.SYS_GETCWD, buf, Int(4096)).Ignore(unix.ERANGE) // longer than a page: certainly inside
	p.FailIfEqual(unix.EPERM, "working directory "+cwd+" is outside the container's root", [2]Arg{buf, p.Bytes([]byte("(unreach"))})
}

func (p *Program) setUser(u specs.User) {
	p.Step("set uid %d and gid %d", u.UID, u.GID)
	if u.UID == math.MaxUint32 || u.GID == math.MaxUint32 {
		p.Fail(sys.Invalidf("process.user: %d is not a valid id (it means \"no change\" to the kernel)", uint32(math.MaxUint32)))
	}
	gids := make([]byte, 0, 4*len(u.AdditionalGids))
	for _, g := range u.AdditionalGids {
		if g == math.MaxUint32 {
			p.Fail(sys.Invalidf("process.user.additionalGids: %d is not a valid id", g))
		}
		gids = append(gids, byte(g), byte(g>>8), byte(g>>16), byte(g>>24))
	}
	p.Call(unix.SYS_PRCTL, Int(unix.PR_SET_KEEPCAPS), Int(1), Int(0), Int(0), Int(0))
	p.Call(unix.SYS_SETGROUPS, Int(len(u.AdditionalGids)), p.Bytes(gids))
	p.Call(unix.SYS_SETRESGID, Int(u.GID), Int(u.GID), Int(u.GID))
	p.Call(unix.SYS_SETRESUID, Int(u.UID), Int(u.UID), Int(u.UID))
	umask := uint32(0o022)
	if u.Umask != nil {
		umask = *u.Umask
	}
	p.Call(unix.SYS_UMASK, Int(umask))
}

func (p *Program) loadSeccomp(s *Seccomp) {
	if s == nil {
		return
	}
	p.Step("load the seccomp filter")
	filter := make([]byte, 0, 8*len(s.Filter))
	for _, f := range s.Filter {
		filter = append(filter, byte(f.Code), byte(f.Code>>8), f.Jt, f.Jf, byte(f.K), byte(f.K>>8), byte(f.K>>16), byte(f.K>>24))
	}
	fprog := p.Words(uint64(len(s.Filter)), p.Bytes(filter).v)
	in := p.Call(unix.SYS_SECCOMP, Int(unix.SECCOMP_SET_MODE_FILTER), Int(s.Flags), fprog)
	if s.Listener != nil {
		r := p.NewReg("listener")
		in.Store(r)
		s.Listener(r)
	}
}

// defaultPath is where commands are looked for when the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// exec loads the user's program: the one at path, or if that is empty the first
// argument, looked up like execvp(3): every candidate in turn, and only when
// there was none, the reason. mayLook says that a system call more does no harm.
func (p *Program) exec(path string, args, env []string, home string, mayLook bool) {
	if path == "" && (len(args) == 0 || args[0] == "") {
		p.Fail(sys.Invalidf("process.args is empty"))
	}
	if p.err != nil {
		return
	}
	argv, envp := p.StrVec(args), p.environ(env, home)
	p.Step("unblock signals")
	p.Call(unix.SYS_RT_SIGPROCMASK, Int(2), p.Words(0, 0), Nil, Int(8))
	if path == "" && strings.Contains(args[0], "/") {
		path = args[0]
	}
	if path != "" {
		p.Step("exec %q", path)
		p.Call(unix.SYS_EXECVE, p.Str(path), argv, envp)
		return
	}
	p.Step("exec %q", args[0])
	candidates, err := candidates(args[0], env)
	if err != nil {
		p.Fail(err)
	}
	files := make([]Arg, len(candidates))
	for i, c := range candidates {
		files[i] = p.Str(c)
		p.Call(unix.SYS_EXECVE, files[i], argv, envp).Ignore(unix.ENOENT, unix.ENOTDIR, unix.EACCES)
	}
	for _, f := range files {
		p.Call(unix.SYS_EXECVE, f, argv, envp).Ignore(unix.ENOENT, unix.ENOTDIR)
	}
	if mayLook {
		p.failIfThere(files, candidates)
	}
	p.FailWith(unix.ENOENT, "exec \""+args[0]+"\": executable file not found in $PATH")
}

// failIfThere says what an ENOENT of execve(2) means if the file is there: what it
// names to run it is not.
func (p *Program) failIfThere(files []Arg, names []string) {
	for i, f := range files {
		there := p.Call(unix.SYS_FACCESSAT, Int(unix.AT_FDCWD), f, Int(unix.X_OK)).IgnoreAll()
		p.IfOK(there, func() {
			p.FailWith(unix.ENOENT, "exec \""+names[i]+"\": no such file or directory: its interpreter or loader is missing")
		})
	}
}

// A PATH is the image's: each of its directories is room and three system calls.
const maxPathDirs = 1024

// candidates are the files that name may mean, but for those whose path is too
// long for the kernel.
func candidates(name string, env []string) ([]string, error) {
	path := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v // the last one counts
		}
	}
	if n := strings.Count(path, ":"); n >= maxPathDirs {
		return nil, sys.Invalidf("PATH in process.env has %d directories, more than %d", n+1, maxPathDirs)
	}
	var c []string
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		if len(dir)+1+len(name) < unix.PathMax {
			c = append(c, dir+"/"+name)
		}
	}
	return c, nil
}
