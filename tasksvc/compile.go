package tasksvc

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/nsexec"
	"vminit/nsexec/seccomp"
	"vminit/rootfs"
)

// compileOptions is what a compilation needs besides the config.
type compileOptions struct {
	id        string
	bundle    string
	cgroup    string // absolute path of the container's directory
	network   bool   // a new network namespace is ready, with lo up
	keyring   string // name of a new session keyring to join, "" to keep the daemon's
	seccomp   *seccomp.Cache
	launcher  *nsexec.Launcher                      // will run it; nil for a plan to look at
	oomAdjust int                                   // the daemon's own oom_score_adj, which a workload must not inherit
	tasks     []string                              // files the pid is written to, see rdtGroup
	files     int                                   // descriptors the process gets from 3 on
	home      string                                // HOME of an exec whose environment has none
	affinity  *specs.CPUAffinity                    // of an exec that has none of its own
	hooks     gateHandler                           // runs the hooks that belong before pivot_root
	path      string                                // program to run instead of the first argument
	connect   []nsexec.Connection                   // with networks of the guest
	listener  func(p *nsexec.Process, fd int) error // takes the seccomp listener that p has as fd
	traced    bool                                  // processes of a container may trace others
}

// compileInit turns a config into the launch of the container's first process.
// It is pure but for looking at the kinds of bind sources.
func compileInit(spec *specs.Spec, ns namespaces, o compileOptions) (*plan, error) {
	if err := checkPlan(spec, ns); err != nil {
		return nil, err
	}
	p, err := o.launcher.NewProgram()
	if err != nil {
		return nil, err
	}
	p.PassFiles(o.files)
	pl, linux, own := &plan{program: p, warnings: ignored(spec)}, spec.Linux, ns.all()
	userNS := own&unix.CLONE_NEWUSER != 0
	pl.enterNamespaces(ns, linux, o.network)
	if userNS { // procfs would refuse the child
		score := oomScore(spec.Process)
		pl.fromOutside().oomScore = &score
	} else {
		pl.setOOMScore(spec.Process, o)
	}
	if spec.Process != nil {
		pl.setLabels(spec.Process)
	}
	fs := rootfs.NewCompiler(p, spec, rootfs.Options{
		Bundle: o.bundle, Namespaces: own, Cgroup: o.cgroup, Gate: pl.gate, Launcher: o.launcher,
	})
	fs.Open()
	if userNS {
		p.BecomeRoot()
	}
	if len(linux.TimeOffsets) > 0 {
		pl.enterTimeNamespace(linux.TimeOffsets, userNS)
	}
	pl.setUpNetwork(linux, ns, o)
	p.SetHostname(spec.Hostname, spec.Domainname)
	fs.Build()
	if hasCreateHooks(spec.Hooks) {
		pl.gate(gateHooks, o.hooks)
	}
	pl.setSysctls(linux.Sysctl, own) // behind the hooks, which may have made network devices
	fs.Enter()
	pl.finishInit(spec, userNS, o)
	return pl.checked()
}

// setUpNetwork brings the loopback device of a new network namespace up and has
// the parent put devices there.
func (pl *plan) setUpNetwork(linux *specs.Linux, ns namespaces, o compileOptions) {
	p := pl.program
	if ns.fresh&unix.CLONE_NEWNET != 0 && !o.network {
		p.LoopbackUp()
	}
	if len(linux.NetDevices) > 0 {
		var socket nsexec.Reg
		socket = p.RouteSocket(func() { pl.gate(gateNetwork, moveNetDevices(linux.NetDevices, &socket)) })
	}
	if len(o.connect) > 0 {
		if err := checkConnections(o.connect, ns.all()); err != nil {
			p.Fail(err)
		}
		var socket nsexec.Reg
		socket = p.RouteSocket(func() { pl.gate(gateNetwork, connectNetworks(o.connect, &socket)) })
	}
}

// setSysctls sets those of namespaces that are the container's own, in order of
// their names.
func (pl *plan) setSysctls(sysctls map[string]string, own uint64) {
	for _, name := range slices.Sorted(maps.Keys(sysctls)) {
		if err := pl.program.SetSysctl(name, sysctls[name], own); err != nil {
			pl.program.Fail(err)
		}
	}
}

// finishInit appends the end of an init's program: the start gate and the user's
// program, or the error of a config that has none.
func (pl *plan) finishInit(spec *specs.Spec, userNS bool, o compileOptions) {
	p := pl.program
	if spec.Process == nil {
		pl.last, pl.gated = p.Gate(gateStart), true
		p.FailWith(unix.EINVAL, "config.json has no process to start")
		return
	}
	if spec.Process.Terminal {
		pl.terminal = true
		pl.tty = p.SetupTerminal(spec.Process.User.UID, true, false)
	}
	if pl.home = nsexec.NeedsHome(spec.Process.Env); pl.home {
		o.home = defaultHome
	}
	pl.finish(spec.Process, spec.Linux, gateStart, userNS, o)
}

// compileExec turns a process into the launch of an exec that joins the given
// namespaces of a container with this config. The container's pidfd is bound to
// the returned register.
func compileExec(proc *specs.Process, linux *specs.Linux, join uint64, o compileOptions) (*plan, nsexec.Reg, error) {
	p, err := o.launcher.NewProgram()
	if err != nil {
		return nil, 0, err
	}
	p.PassFiles(o.files)
	pl := &plan{program: p, stdio: p.SetupStdio()}
	pl.setOOMScore(proc, o)
	if a := cmp.Or(proc.ExecCPUAffinity, o.affinity); a != nil {
		pl.setAffinity(a)
	}
	pl.setLabels(proc)
	userNS, gate := join&unix.CLONE_NEWUSER != 0, ""
	var pidfd nsexec.Reg
	if o.late(join) {
		pidfd, gate, pl.late = p.JoinLate(join), gateForked, new(nsexec.Refork)
	} else {
		pidfd = p.Join(join)
	}
	if userNS {
		p.BecomeRoot()
	}
	if proc.Terminal {
		pl.terminal, gate = true, gateTerminal
		pl.tty = p.SetupTerminal(proc.User.UID, false, pl.late != nil)
	}
	pl.finish(proc, linux, gate, userNS, o)
	checked, err := pl.checked()
	return checked, pidfd, err
}

// setAffinity has an exec run on some CPUs before it enters the container's
// cgroup, and on some afterwards.
func (pl *plan) setAffinity(a *specs.CPUAffinity) {
	if a.Initial != "" {
		pl.program.SetAffinity("process.execCPUAffinity.initial", a.Initial)
		pl.procs = pl.program.EnterCgroup()
	}
	if a.Final != "" {
		pl.program.SetAffinity("process.execCPUAffinity.final", a.Final)
	}
}

// finish appends the end of the program, which stops at the gate, if it has a
// name or if the parent has something to do there.
func (pl *plan) finish(proc *specs.Process, linux *specs.Linux, gate string, userNS bool, o compileOptions) {
	p := pl.program
	f := nsexec.Finish{Process: proc, Path: o.path, Grantable: o.launcher.Capabilities(), Home: o.home, Keyring: o.keyring}
	var err error
	if f.Limits, err = nsexec.ParseLimits(proc); err != nil {
		p.Fail(err)
	}
	if userNS {
		f.Grantable = math.MaxUint64
		if !f.Limits.IsZero() {
			pl.fromOutside().limits, f.Limits = f.Limits, nsexec.Limits{}
		}
	}
	if len(o.tasks) > 0 {
		pl.fromOutside().tasks = o.tasks
	}
	if linux.Personality != nil {
		p.SetPersonality(linux.Personality)
	}
	if linux.MemoryPolicy != nil {
		p.SetMemoryPolicy(linux.MemoryPolicy)
	}
	listener := gateHandler(nil)
	if linux.Seccomp != nil {
		s, notify, warnings, err := compileSeccomp(o.seccomp, linux.Seccomp)
		if err != nil {
			p.Fail(err)
		}
		if notify {
			s.Listener = func(r nsexec.Reg) {
				listener = func(child *nsexec.Child, regs *nsexec.Registers) error { return o.listener(child.Process, regs.Fd(r)) }
				pl.gate(gateListener, listener)
			}
		}
		f.Seccomp = s
		pl.warnings = append(pl.warnings, warnings...)
	}
	if gate == "" && (pl.outside != nil || f.Seccomp != nil && f.Seccomp.Listener != nil) {
		gate = gateLimits
	}
	f.Gate, pl.gated, f.ForkLate = gate, gate != "", pl.late != nil
	done := p.Finish(f)
	pl.last = done.Gate
	if f.ForkLate {
		*pl.late = done.Forked
	}
	if pl.traced = o.traced; o.traced {
		p.NotReused()
	}
	if proc.NoNewPrivileges { // then the filter is loaded behind the last gate
		pl.afterStartGate = listener
	}
	pl.warnings = append(pl.warnings, done.Warnings...)
}

// setLabels has the process change to its LSM labels when it executes the
// user's program. It must come before the container's /proc is seen.
func (pl *plan) setLabels(proc *specs.Process) {
	if proc.ApparmorProfile != "" {
		pl.program.SetAppArmor(proc.ApparmorProfile)
	}
	if proc.SelinuxLabel != "" {
		pl.program.SetSELinux(proc.SelinuxLabel)
	}
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
