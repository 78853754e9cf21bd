package tasksvc

import (
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/nsexec"
	"vminit/nsexec/seccomp"
	"vminit/rootfs"
)

// plan is a compiled launch and what has to be bound to it before it runs.
type plan struct {
	program  *nsexec.Program
	stdio    nsexec.Stdio
	tty      nsexec.Reg            // the pty's master at the last gate, if terminal
	terminal bool                  //
	files    map[nsexec.Reg]uint64 // inputs that are namespace files, by clone flag
	gates    map[nsexec.GateID]attend
	last     nsexec.GateID // the gate before the user's program
	warnings []string
}

// attend is what the parent does for a child that waits at a gate.
type attend = rootfs.Attend

// gate appends a gate and what the parent is to do there.
func (pl *plan) gate(name string, do attend) {
	if pl.gates == nil {
		pl.gates = map[nsexec.GateID]attend{}
	}
	pl.gates[pl.program.Gate(name)] = do
}

const (
	gateIDMaps   = "idmaps"
	gateTerminal = "terminal"
	gateStart    = "start"
)

// compileOptions is what a compilation needs besides the config.
type compileOptions struct {
	id        string
	bundle    string
	cgroup    string // absolute path of the container's directory
	newRing   bool   // join a new session keyring
	seccomp   *seccomp.Cache
	launcher  *nsexec.Launcher // will run it; nil for a plan to look at
	oomAdjust int              // the daemon's own oom_score_adj, which a workload must not inherit
}

// compileInit turns a config into the launch of the container's first process.
// It is pure but for looking at the kinds of bind sources.
func compileInit(spec *specs.Spec, ns namespaces, o compileOptions) (*plan, error) {
	p, err := o.launcher.NewProgram()
	if err != nil {
		return nil, err
	}
	pl := &plan{program: p, stdio: p.SetupStdio(), files: map[nsexec.Reg]uint64{}}
	userNS := ns.all()&unix.CLONE_NEWUSER != 0
	if !userNS { // with one, the parent does it: procfs would refuse the child
		pl.setOOMScore(spec.Process, o)
	}
	pl.joinByPath(ns)
	if ns.fresh&unix.CLONE_NEWUSER != 0 {
		pl.gate(gateIDMaps, func(child *nsexec.Child, _ *nsexec.Registers) error {
			return writeIDMaps(child.PID(), spec.Linux)
		})
	}
	fs := rootfs.NewCompiler(p, spec, rootfs.Options{
		Bundle: o.bundle, Namespaces: ns.all(), Cgroup: o.cgroup, Gate: pl.gate, Launcher: o.launcher,
	})
	fs.Open()
	if userNS {
		p.BecomeRoot()
	}
	if ns.fresh&unix.CLONE_NEWNET != 0 {
		p.LoopbackUp()
	}
	if ns.all()&unix.CLONE_NEWUTS != 0 {
		p.SetHostname(spec.Hostname, spec.Domainname)
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Linux.Sysctl)) {
		if err := p.SetSysctl(name, spec.Linux.Sysctl[name], ns.all()); err != nil {
			p.Fail(err)
		}
	}
	fs.Build()
	fs.Enter()
	if spec.Process == nil {
		pl.last = p.Gate(gateStart)
		p.FailWith(unix.EINVAL, "config.json has no process to start")
		return pl.checked()
	}
	if spec.Process.Terminal {
		pl.terminal = true
		pl.tty = p.SetupTerminal(spec.Process.User.UID, true)
	}
	if err := pl.finish(spec.Process, spec.Linux.Seccomp, gateStart, o); err != nil {
		p.Fail(err)
	}
	return pl.checked()
}

// compileExec turns a process into the launch of an exec that joins the given
// namespaces. The container's pidfd is bound to the returned register.
func compileExec(proc *specs.Process, filter *specs.LinuxSeccomp, join uint64, o compileOptions) (*plan, nsexec.Reg, error) {
	p, err := o.launcher.NewProgram()
	if err != nil {
		return nil, 0, err
	}
	pl := &plan{program: p, stdio: p.SetupStdio(), files: map[nsexec.Reg]uint64{}}
	pl.setOOMScore(proc, o)
	pidfd := p.Join(join)
	if join&unix.CLONE_NEWUSER != 0 {
		p.BecomeRoot()
	}
	gate := ""
	if proc.Terminal {
		pl.terminal, gate = true, gateTerminal
		pl.tty = p.SetupTerminal(proc.User.UID, false)
	}
	if err := pl.finish(proc, filter, gate, o); err != nil {
		p.Fail(err)
	}
	checked, err := pl.checked()
	return checked, pidfd, err
}

// checked returns the plan, or the error it was built with and no memory held.
func (pl *plan) checked() (*plan, error) {
	if err := pl.program.Err(); err != nil {
		pl.program.Close()
		return nil, err
	}
	return pl, nil
}

func (pl *plan) finish(proc *specs.Process, filter *specs.LinuxSeccomp, gate string, o compileOptions) error {
	f := nsexec.Finish{Process: proc, Gate: gate}
	if o.newRing {
		f.Keyring = "_ses." + o.id
	}
	if filter != nil {
		var warnings []string
		var err error
		if f.Seccomp, warnings, err = compileSeccomp(o.seccomp, filter); err != nil {
			return err
		}
		pl.warnings = append(pl.warnings, warnings...)
	}
	done := pl.program.Finish(f)
	pl.last = done.Gate
	for _, name := range done.UnknownCaps {
		pl.warnings = append(pl.warnings, "process.capabilities: unknown capability "+name+" is left out")
	}
	return nil
}

// setOOMScore keeps the daemon's own protection from the workload.
func (pl *plan) setOOMScore(proc *specs.Process, o compileOptions) {
	if want := oomScore(proc); want != o.oomAdjust {
		pl.program.SetOOMScoreAdj(want)
	}
}

func oomScore(proc *specs.Process) int {
	if proc == nil || proc.OOMScoreAdj == nil {
		return 0
	}
	return *proc.OOMScoreAdj
}

// joinOrder: the user namespace first, it owns the rights to the others.
var joinOrder = []uint64{
	unix.CLONE_NEWUSER, unix.CLONE_NEWNET, unix.CLONE_NEWIPC, unix.CLONE_NEWUTS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWTIME,
}

func (pl *plan) joinByPath(ns namespaces) {
	for _, flag := range joinOrder { // the pid namespace is entered by clone3
		if _, ok := ns.byPath[flag]; ok {
			pl.files[pl.program.JoinFile(nsName(flag), flag)] = flag
		}
	}
}
