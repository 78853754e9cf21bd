package nsexec

import (
	"encoding/json"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

func TestParseScheduler(t *testing.T) {
	a, err := parseScheduler(&specs.Scheduler{Policy: specs.SchedDeadline, Runtime: 1, Deadline: 2, Period: 3,
		Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork, specs.SchedFlagReclaim, specs.SchedFlagDLOverrun, specs.SchedFlagKeepPolicy,
			specs.SchedFlagKeepParams, specs.SchedFlagUtilClampMin, specs.SchedFlagUtilClampMax}})
	require.NoError(t, err)
	require.Equal(t, &unix.SchedAttr{Size: 56, Policy: 6, Flags: 0x7f, Runtime: 1, Deadline: 2, Period: 3, Util_max: 1024}, a)
	for _, s := range []specs.Scheduler{
		{}, {Policy: "SCHED_FAST"}, {Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{"SCHED_FLAG_X"}},
		{Policy: specs.SchedOther, Nice: 20}, {Policy: specs.SchedBatch, Nice: -21},
		{Policy: specs.SchedFIFO}, {Policy: specs.SchedRR, Priority: 100}, {Policy: specs.SchedRR, Priority: -1},
		{Policy: specs.SchedOther, Priority: 1}, {Policy: specs.SchedIdle, Runtime: 1}, {Policy: specs.SchedOther, Deadline: 1}, {Policy: specs.SchedFIFO, Priority: 1, Period: 1},
	} {
		_, err := parseScheduler(&s)
		require.ErrorIs(t, err, sys.ErrInvalid, "%+v", s)
	}
	_, err = parseScheduler(&specs.Scheduler{Policy: specs.SchedISO})
	require.ErrorIs(t, err, sys.ErrUnsupported)
}

func TestParseLimitsErrors(t *testing.T) {
	for _, p := range []specs.Process{
		{Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_MOON"}}},
		{Rlimits: []specs.POSIXRlimit{{Type: "NOFILE"}}},
		{Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CPU", Hard: 1}, {Type: "rlimit_cpu", Hard: 1}}},
		{Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_CPU", Soft: 2, Hard: 1}}},
		{Scheduler: &specs.Scheduler{Policy: "x"}},
		{IOPriority: &specs.LinuxIOPriority{Class: "IOPRIO_CLASS_NONE"}},
		{IOPriority: &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 8}},
		{IOPriority: &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: -1}},
	} {
		l, err := ParseLimits(&p)
		require.ErrorIs(t, err, sys.ErrInvalid, "%+v", p)
		require.True(t, l.IsZero())
	}
}

func TestPolicyErrors(t *testing.T) {
	for name, build := range map[string]func(*Program){
		"domain": func(p *Program) { p.SetPersonality(&specs.LinuxPersonality{Domain: "WINDOWS"}) },
		"flag": func(p *Program) {
			p.SetPersonality(&specs.LinuxPersonality{Domain: specs.PerLinux, Flags: []specs.LinuxPersonalityFlag{"ADDR_NO_RANDOMIZE"}})
		},
		"mode": func(p *Program) { p.SetMemoryPolicy(&specs.LinuxMemoryPolicy{Mode: "MPOL_NEAR"}) },
		"mode flag": func(p *Program) {
			p.SetMemoryPolicy(&specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{"MPOL_F_X"}})
		},
		"nodes":    func(p *Program) { p.SetMemoryPolicy(&specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0-9999"}) },
		"affinity": func(p *Program) { p.SetAffinity("x", "0-99999") },
		"env":      func(p *Program) { p.environ([]string{"A=\x00"}, "") },
	} {
		p, err := NewProgram()
		require.NoError(t, err)
		build(p)
		require.ErrorIs(t, p.Err(), sys.ErrInvalid, name)
		require.NoError(t, p.Close())
	}
}

// FuzzProcess compiles whatever process there may be: no panic, and an error of
// the caller's if it is one.
func FuzzProcess(f *testing.F) {
	f.Add([]byte(`{"cwd":"/","args":["a"],"env":["A=b"],"user":{"uid":1,"gid":2,"additionalGids":[3]},"capabilities":{"effective":["CAP_KILL"],"ambient":["X"]}}`))
	f.Add([]byte(`{"cwd":"/","args":["/a"],"scheduler":{"policy":"SCHED_RR","priority":4},"ioPriority":{"class":"IOPRIO_CLASS_RT","priority":3},"rlimits":[{"type":"RLIMIT_CPU","soft":1,"hard":2}]}`))
	f.Add([]byte(`{"cwd":"","args":[""],"noNewPrivileges":true,"execCPUAffinity":{"initial":"0-3","final":"7"},"apparmorProfile":"a","selinuxLabel":"b"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		proc := new(specs.Process)
		if json.Unmarshal(data, proc) != nil {
			return
		}
		p, err := NewProgram()
		require.NoError(t, err)
		defer p.Close()
		p.SetupStdio()
		p.SetAppArmor(proc.ApparmorProfile)
		p.SetSELinux(proc.SelinuxLabel)
		if a := proc.ExecCPUAffinity; a != nil {
			p.SetAffinity("initial", a.Initial)
		}
		limits, err := ParseLimits(proc)
		if err != nil {
			require.ErrorIs(t, err, sys.ErrInvalid)
			require.True(t, limits.IsZero())
		}
		p.Finish(Finish{Process: proc, Limits: limits, Gate: "g", Home: "/x"})
		if err := p.Err(); err != nil {
			require.ErrorIs(t, err, sys.ErrInvalid)
		}
		_ = p.String()
	})
}
