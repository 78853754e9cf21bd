package tasksvc

import (
	"vminit/nsexec"
	"vminit/nsexec/seccomp"
	"vminit/rootfs"
)

// plan is a compiled launch and what has to be done for it while it runs.
type plan struct {
	program        *nsexec.Program
	clone          uint64 // namespaces the child is born with, CLONE_NEW* flags
	stdio          nsexec.Stdio
	network        nsexec.Reg            // input for a network namespace that is ready; 0 if clone3 makes one
	tty            nsexec.Reg            // the pty's master at the last gate, if terminal
	terminal       bool                  // the process has one
	files          map[nsexec.Reg]uint64 // inputs that are namespace files, by clone flag
	procs          nsexec.Reg            // input for cgroup.procs: the child is born outside its cgroup
	gates          map[nsexec.GateID]gateHandler
	last           nsexec.GateID  // the gate before the user's program
	gated          bool           // there is one
	afterStartGate gateHandler    // for one more gate behind the last; nil: there is none
	home           bool           // HOME is to be looked up at the last gate
	outside        *outside       // what the parent sets at the last gate
	late           *nsexec.Refork // of an exec that is forked late, see tracers
	traced         bool           // made for a container whose processes may trace
	warnings       []string
}

// outside are the settings of a process that its parent makes: those that in a
// user namespace only it may make, and its place in resctrl.
type outside struct {
	limits   nsexec.Limits
	oomScore *int
	tasks    []string // files the pid is written to
}

// gateHandler is what the parent does for a child that waits at a gate.
type gateHandler = rootfs.GateHandler

const (
	gateUser     = "user namespace"
	gateTime     = "time offsets"
	gateNetwork  = "network devices"
	gateHooks    = "hooks"
	gateListener = "seccomp listener"
	gateTerminal = "terminal"
	gateLimits   = "limits"
	gateForked   = "forked"
	gateStart    = "start"
)

// gate appends a gate and what the parent is to do there.
func (pl *plan) gate(name string, do gateHandler) {
	if pl.gates == nil {
		pl.gates = map[nsexec.GateID]gateHandler{}
	}
	pl.gates[pl.program.Gate(name)] = do
}

func (pl *plan) fromOutside() *outside {
	if pl.outside == nil {
		pl.outside = &outside{}
	}
	return pl.outside
}

// checked returns the plan, or the error it was built with and no memory held.
func (pl *plan) checked() (*plan, error) {
	if err := pl.program.Err(); err != nil {
		pl.program.Close()
		return nil, err
	}
	return pl, nil
}

// Plan compiles the bundle's config as Create would and returns the syscalls a
// container would be made of, printed like strace. It needs no privileges and
// changes nothing.
func Plan(bundle string) (string, error) {
	spec, err := loadSpec(bundle)
	if err != nil {
		return "", err
	}
	ns, err := parseNamespaces(spec.Linux.Namespaces)
	if err != nil {
		return "", err
	}
	pl, err := compileInit(spec, ns, compileOptions{id: "ID", bundle: bundle, cgroup: "/sys/fs/cgroup/vminit/default/ID", keyring: "_ses.ID", seccomp: new(seccomp.Cache)})
	if err != nil {
		return "", err
	}
	defer pl.program.Close()
	return cloneLine(pl.clone) + pl.program.String(), nil
}
