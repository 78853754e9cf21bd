package seccomp

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// rules is a profile that refuses everything but what the entries say.
func rules(entries ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: entries}
}

func on(act specs.LinuxSeccompAction, name string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: []string{name}, Action: act, Args: args}
}

func arg(index uint, op specs.LinuxSeccompOperator, value uint64, two ...uint64) specs.LinuxSeccompArg {
	a := specs.LinuxSeccompArg{Index: index, Op: op, Value: value}
	if len(two) > 0 {
		a.ValueTwo = two[0]
	}
	return a
}

func TestRefused(t *testing.T) {
	errno := func(n uint) *uint { return &n }
	allowRead := on(specs.ActAllow, "read")
	for name, p := range map[string]*specs.LinuxSeccomp{
		"no profile":                  nil,
		"no default":                  {},
		"unknown default":             {DefaultAction: "SCMP_ACT_DENY"},
		"errno for kill":              {DefaultAction: specs.ActKill, DefaultErrnoRet: errno(1)},
		"errno too large":             {DefaultAction: specs.ActErrno, DefaultErrnoRet: errno(4096)},
		"trace too large":             {DefaultAction: specs.ActTrace, DefaultErrnoRet: errno(1 << 16)},
		"notify by default":           {DefaultAction: specs.ActNotify, ListenerPath: "/l"},
		"unknown architecture":        {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_Z80"}},
		"unknown flag":                {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_NEW_LISTENER"}},
		"unknown action":              rules(on("SCMP_ACT_IGNORE", "read")),
		"errno for allow":             rules(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, ErrnoRet: errno(1)}),
		"no names":                    rules(specs.LinuxSyscall{Action: specs.ActAllow}),
		"empty name":                  rules(on(specs.ActAllow, "")),
		"unknown operator":            rules(on(specs.ActAllow, "read", arg(0, "SCMP_CMP_IN", 1))),
		"seventh argument":            rules(on(specs.ActAllow, "read", arg(6, specs.OpEqualTo, 1))),
		"notify write":                {DefaultAction: specs.ActAllow, ListenerPath: "/l", Syscalls: []specs.LinuxSyscall{on(specs.ActNotify, "write")}},
		"notify nobody":               rules(on(specs.ActNotify, "mount")),
		"metadata for nobody":         {DefaultAction: specs.ActAllow, ListenerMetadata: "m"},
		"bad entry though unknown":    rules(on("SCMP_ACT_IGNORE", "no_such_call")),
		"condition on a default rule": rules(allowRead, on(specs.ActErrno, "read", arg(9, specs.OpEqualTo, 0))),
	} {
		f, err := compile(p, specs.ArchX86_64)
		require.ErrorIs(t, err, sys.ErrInvalid, name)
		require.Nil(t, f, name)
		require.True(t, strings.HasPrefix(err.Error(), "seccomp: "), "%s: %v", name, err)
	}
}

// TestTooLarge: profiles that cannot fit a filter are refused, and quickly.
func TestTooLarge(t *testing.T) {
	spread := func(n int) (args []specs.LinuxSeccompArg) { // every second value, of both halves
		for i := range uint64(n) {
			args = append(args, arg(0, specs.OpEqualTo, i<<33|i<<1))
		}
		return args
	}
	_, err := compile(rules(on(specs.ActAllow, "read", spread(500)...)), specs.ArchX86_64)
	require.NoError(t, err)
	_, err = compile(rules(on(specs.ActAllow, "read", spread(4000)...)), specs.ArchX86_64)
	require.ErrorIs(t, err, sys.ErrInvalid)
	require.ErrorContains(t, err, "instructions, the kernel takes 4096")
	_, err = compile(rules(on(specs.ActAllow, "read", spread(5000)...)), specs.ArchX86_64)
	require.ErrorIs(t, err, sys.ErrInvalid)

	many := on(specs.ActAllow, "read", spread(100)...)
	for i := range callEnds {
		many.Names = append(many.Names, callName(i))
	}
	_, err = compile(rules(many), specs.ArchX86_64)
	require.ErrorIs(t, err, sys.ErrInvalid)
	require.ErrorContains(t, err, "more than 4096 conditional rules")
}

func TestActions(t *testing.T) {
	seven := uint(7)
	for _, c := range []struct {
		action specs.LinuxSeccompAction
		errno  *uint
		want   uint32
	}{
		{specs.ActKill, nil, unix.SECCOMP_RET_KILL_THREAD},
		{specs.ActKillThread, nil, unix.SECCOMP_RET_KILL_THREAD},
		{specs.ActKillProcess, nil, unix.SECCOMP_RET_KILL_PROCESS},
		{specs.ActTrap, nil, unix.SECCOMP_RET_TRAP},
		{specs.ActErrno, nil, unix.SECCOMP_RET_ERRNO | 1},
		{specs.ActErrno, &seven, unix.SECCOMP_RET_ERRNO | 7},
		{specs.ActTrace, nil, unix.SECCOMP_RET_TRACE | 1},
		{specs.ActTrace, &seven, unix.SECCOMP_RET_TRACE | 7},
		{specs.ActLog, nil, unix.SECCOMP_RET_LOG},
		{specs.ActAllow, nil, unix.SECCOMP_RET_ALLOW},
		{specs.ActNotify, nil, unix.SECCOMP_RET_USER_NOTIF},
	} {
		p := rules(specs.LinuxSyscall{Names: []string{"getpid"}, Action: c.action, ErrnoRet: c.errno})
		p.ListenerPath = "/run/l"
		f, err := compile(p, specs.ArchX86_64)
		require.NoError(t, err)
		require.Equal(t, c.action == specs.ActNotify, f.Notify)
		got, _ := run(f.Insns, callData(t, specs.ArchX86_64, "getpid"))
		require.Equal(t, c.want, got, "%s", c.action)
	}
}

func TestFlags(t *testing.T) {
	const (
		tsync = "SECCOMP_FILTER_FLAG_TSYNC"
		kill  = specs.LinuxSeccompFlagWaitKillableRecv
	)
	notify := []specs.LinuxSyscall{on(specs.ActNotify, "mount")}
	for _, c := range []struct {
		flags []specs.LinuxSeccompFlag
		rules []specs.LinuxSyscall
		want  uint
	}{
		{nil, nil, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{[]specs.LinuxSeccompFlag{}, nil, 0},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, tsync}, nil,
			unix.SECCOMP_FILTER_FLAG_LOG | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW | unix.SECCOMP_FILTER_FLAG_TSYNC},
		{[]specs.LinuxSeccompFlag{kill}, nil, 0}, // the kernel refuses it without a listener
		{[]specs.LinuxSeccompFlag{kill, tsync}, notify, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV},
	} {
		f, err := compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/l", Flags: c.flags, Syscalls: c.rules}, specs.ArchX86_64)
		require.NoError(t, err)
		require.Equal(t, c.want, f.Flags, "%v", c.flags)
	}
}

func TestWarnings(t *testing.T) {
	p := rules(on(specs.ActAllow, "no_such_call"), on(specs.ActAllow, "nor\nthis"))
	p.Architectures = []specs.Arch{specs.ArchS390X, specs.ArchX86}
	f, err := compile(p, specs.ArchX86_64)
	require.NoError(t, err)
	require.Equal(t, []string{
		"seccomp: architecture SCMP_ARCH_S390X skipped: its programs cannot run here",
		`seccomp: unknown system calls skipped: "no_such_call", "nor\nthis"`,
	}, f.Warnings)

	var many specs.LinuxSyscall
	for i := range 1000 {
		many.Names = append(many.Names, fmt.Sprint("call", i, strings.Repeat("x", 1000)))
	}
	many.Action = specs.ActAllow
	f, err = compile(rules(many), specs.ArchX86_64)
	require.NoError(t, err)
	require.Less(t, len(f.Warnings[0]), 1200)
	require.Contains(t, f.Warnings[0], "and 980 more")
}

func TestCompileHere(t *testing.T) {
	f, err := Compile(rules(on(specs.ActAllow, "read")))
	if errors.Is(err, sys.ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
	require.NoError(t, verify(f.Insns))
}
