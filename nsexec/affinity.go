package nsexec

import (
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// maxCPUs is the largest NR_CPUS of any architecture.
const maxCPUs = 8192

// SetAffinity has the process run only on the CPUs of a list such as "0-3,7"
// (sched_setaffinity(2)). field is where the list is from, for errors.
func (p *Program) SetAffinity(field, cpus string) {
	mask, err := parseList(cpus, maxCPUs)
	if err != nil {
		p.Fail(sys.Invalidf("%s: %w", field, err))
		return
	}
	p.Step("set the CPU affinity to %s (%s)", cpus, field)
	p.Call(unix.SYS_SCHED_SETAFFINITY, Int(0), Int(8*len(mask)), p.Words(mask...))
}

// EnterCgroup moves the process into the cgroup whose cgroup.procs, open for
// writing, is bound to the returned input (cgroups(7)). It is for what has to
// be done before: as a rule a child is born in its cgroup.
func (p *Program) EnterCgroup() Reg {
	r := p.Input("procs")
	p.Step("move into the container's cgroup")
	p.Call(unix.SYS_WRITE, r.Arg(), p.Str("0"), Int(1))
	return r
}
