package seccomp

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// containerd is containerd's default profile.
func containerd(t testing.TB) *specs.LinuxSeccomp {
	b, err := os.ReadFile("testdata/config-containerd-seccomp.json")
	require.NoError(t, err)
	var c specs.Spec
	require.NoError(t, json.Unmarshal(b, &c))
	return c.Linux.Seccomp
}

// call is the data of a system call by name.
func callData(t testing.TB, abi specs.Arch, name string, args ...uint64) *data {
	nr, ok := refNumbers(abi)[name]
	require.True(t, ok, name)
	d := &data{nr: nr, arch: knownArch(abi).audit}
	copy(d.args[:], args)
	return d
}

const (
	allow = uint32(unix.SECCOMP_RET_ALLOW)
	eperm = uint32(unix.SECCOMP_RET_ERRNO | 1)
	nosys = uint32(unix.SECCOMP_RET_ERRNO | 38)
	kill  = uint32(unix.SECCOMP_RET_KILL_THREAD)
)

func TestContainerdDefault(t *testing.T) {
	f, err := compile(containerd(t), specs.ArchX86_64)
	require.NoError(t, err)
	used, err := reachable(f.Insns)
	require.NoError(t, err)
	require.Equal(t, len(f.Insns), used)
	require.Empty(t, f.Warnings)
	require.False(t, f.Notify)
	require.EqualValues(t, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, f.Flags)
	require.Len(t, f.Insns, 256, "golden: libseccomp 2.5.4 needs 1006; better is welcome, worse needs a reason")
	for _, c := range []struct {
		abi  specs.Arch
		name string
		args []uint64
		want uint32
	}{
		{specs.ArchX86_64, "read", nil, allow},
		{specs.ArchX32, "read", nil, allow},
		{specs.ArchX86, "read", nil, allow},
		{specs.ArchAARCH64, "read", nil, kill},
		{specs.ArchX86_64, "kexec_load", nil, eperm},
		{specs.ArchX86_64, "clone", []uint64{0}, allow},
		{specs.ArchX86_64, "clone", []uint64{unix.CLONE_NEWUSER}, eperm},
		{specs.ArchX86_64, "clone3", nil, nosys},
		{specs.ArchX86_64, "personality", []uint64{8}, allow},
		{specs.ArchX86_64, "personality", []uint64{9}, eperm},
		{specs.ArchX86_64, "personality", []uint64{1<<32 | 8}, eperm},
		{specs.ArchX86_64, "socket", []uint64{unix.AF_INET}, allow},
		{specs.ArchX86_64, "socket", []uint64{unix.AF_VSOCK}, eperm},
		{specs.ArchX86_64, "file_getattr", nil, nosys},
		{specs.ArchX86, "file_getattr", nil, nosys},
		{specs.ArchX32, "file_getattr", nil, nosys},
	} {
		got, _ := run(f.Insns, callData(t, c.abi, c.name, c.args...))
		require.Equalf(t, c.want, got, "%s %s%v: %#x", c.abi, c.name, c.args, got)
	}
}

// TestSemantics: what the words of a profile mean, one rule of reading a time.
func TestSemantics(t *testing.T) {
	const x64, x32, x86, a64, arm = specs.ArchX86_64, specs.ArchX32, specs.ArchX86, specs.ArchAARCH64, specs.ArchARM
	all := []specs.Arch{x64, x32, x86, a64, arm}
	type try struct {
		abi  specs.Arch
		name string
		args []uint64
		want uint32
	}
	for name, c := range map[string]struct {
		profile *specs.LinuxSeccomp
		tries   []try
	}{
		"conditions on different arguments must all hold": {
			rules(on(specs.ActAllow, "read", arg(0, specs.OpEqualTo, 1), arg(2, specs.OpLessThan, 1<<32))),
			[]try{{x64, "read", []uint64{1, 0, 5}, allow}, {x64, "read", []uint64{1, 0, 1 << 32}, eperm}, {x64, "read", []uint64{2, 0, 5}, eperm}},
		},
		"with one argument twice any condition is enough, also on others": {
			rules(on(specs.ActAllow, "read", arg(0, specs.OpEqualTo, 1), arg(0, specs.OpEqualTo, 2), arg(1, specs.OpEqualTo, 3))),
			[]try{{x64, "read", []uint64{1}, allow}, {x64, "read", []uint64{2}, allow}, {x64, "read", []uint64{0, 3}, allow}, {x64, "read", []uint64{3}, eperm}},
		},
		"the first rule that applies decides": {
			rules(on(specs.ActTrap, "read", arg(0, specs.OpLessEqual, 5)), on(specs.ActAllow, "read", arg(0, specs.OpGreaterThan, 3)), on(specs.ActKill, "read", arg(1, specs.OpNotEqual, 0))),
			[]try{{x64, "read", []uint64{5}, unix.SECCOMP_RET_TRAP}, {x64, "read", []uint64{6, 1}, allow}, {x64, "read", []uint64{4, 9}, unix.SECCOMP_RET_TRAP}},
		},
		"an unconditional rule beats all, the first of them the others": {
			rules(on(specs.ActTrap, "read", arg(0, specs.OpEqualTo, 1)), on(specs.ActAllow, "read"), on(specs.ActLog, "read")),
			[]try{{x64, "read", []uint64{1}, allow}},
		},
		"a rule that says the same as the default is none": {
			rules(on(specs.ActErrno, "read", arg(0, specs.OpEqualTo, 1)), on(specs.ActAllow, "read", arg(0, specs.OpLessThan, 9))),
			[]try{{x64, "read", []uint64{1}, allow}},
		},
		"bits outside the mask do not count": {
			rules(on(specs.ActAllow, "read", arg(0, specs.OpMaskedEqual, 0xf0000000f, 0xffffffff00000003))),
			[]try{{x64, "read", []uint64{0xf00000003}, allow}, {x64, "read", []uint64{0x1_0f00_0000_0013}, eperm}, {x64, "read", []uint64{0x5f_0000_0013}, allow}, {x64, "read", []uint64{3}, eperm}},
		},
		"32-bit architectures see the lower half": {
			&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: all, Syscalls: []specs.LinuxSyscall{on(specs.ActAllow, "read", arg(0, specs.OpEqualTo, 1<<63|7))}},
			[]try{{x64, "read", []uint64{7}, eperm}, {a64, "read", []uint64{1<<63 | 7}, allow}, {x32, "read", []uint64{7}, allow}, {x86, "read", []uint64{7}, allow}, {arm, "read", []uint64{1<<40 | 7}, allow}},
		},
		"each architecture has its own numbers": {
			&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: all, Syscalls: []specs.LinuxSyscall{on(specs.ActAllow, "execveat"), on(specs.ActAllow, "chown32"), on(specs.ActAllow, "cacheflush")}},
			[]try{{x64, "execveat", nil, allow}, {x32, "execveat", nil, allow}, {x86, "chown32", nil, allow}, {a64, "execveat", nil, allow}, {arm, "cacheflush", nil, allow},
				{arm, "set_tls", nil, eperm}, {arm, "read", nil, eperm}, {arm, "mseal", nil, nosys}, {x32, "preadv2", nil, eperm}},
		},
		"architectures not listed are killed": {
			rules(on(specs.ActAllow, "read")),
			[]try{{x64, "read", nil, allow}, {x32, "read", nil, kill}, {x86, "read", nil, kill}, {a64, "read", nil, kill}},
		},
		"newer calls do not exist": {
			rules(on(specs.ActAllow, "faccessat2"), on(specs.ActErrno, "cachestat")),
			[]try{{x64, "clone3", nil, eperm}, {x64, "cachestat", nil, eperm}, {x64, "fchmodat2", nil, nosys}, {x64, "mseal", nil, nosys}},
		},
		"newer calls are killed never, with a default of kill": {
			&specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess, Syscalls: []specs.LinuxSyscall{on(specs.ActAllow, "clone3")}},
			[]try{{x64, "open", nil, unix.SECCOMP_RET_KILL_PROCESS}, {x64, "mseal", nil, nosys}},
		},
		"newer calls are allowed by default": {
			&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{on(specs.ActErrno, "read")}},
			[]try{{x64, "read", nil, eperm}, {x64, "mseal", nil, allow}},
		},
		"without any rule nothing is newer": {
			rules(), []try{{x64, "read", nil, eperm}, {x64, "mseal", nil, eperm}},
		},
		"socketcall and ipc are what they stand for": {
			&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: all, Syscalls: []specs.LinuxSyscall{on(specs.ActAllow, "accept"), on(specs.ActAllow, "shmat"), on(specs.ActTrap, "semop")}},
			[]try{{x86, "socketcall", []uint64{5}, allow}, {x86, "socketcall", []uint64{4}, eperm}, {x86, "ipc", []uint64{21}, allow}, {x86, "ipc", []uint64{0x10015}, allow}, {x86, "ipc", []uint64{1}, unix.SECCOMP_RET_TRAP}, {x86, "ipc", []uint64{22}, eperm}},
		},
		"through socketcall conditions cannot be met": {
			&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: all, Syscalls: []specs.LinuxSyscall{on(specs.ActAllow, "socket", arg(0, specs.OpEqualTo, 1)), on(specs.ActKill, "bind", arg(0, specs.OpEqualTo, 1))}},
			[]try{{x86, "socket", []uint64{1}, allow}, {x86, "socketcall", []uint64{1}, eperm}, {x86, "socketcall", []uint64{2}, kill}},
		},
		"what is said of socketcall itself goes first": {
			&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: all, Syscalls: []specs.LinuxSyscall{on(specs.ActKill, "bind"), on(specs.ActAllow, "socketcall")}},
			[]try{{x86, "socketcall", []uint64{1}, allow}, {x86, "socketcall", []uint64{2}, allow}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := compile(c.profile, x64)
			require.NoError(t, err)
			require.NoError(t, verify(f.Insns))
			for _, try := range c.tries {
				d := callData(t, try.abi, try.name, try.args...)
				got, _ := run(f.Insns, d)
				require.Equalf(t, try.want, got, "%s %s%#x: %#x", try.abi, try.name, try.args, got)
				require.Equal(t, got, reference(c.profile, x64, d))
			}
		})
	}
}

// TestCancelled: -1 is how a tracer cancels a system call; it is not a foreign
// architecture's.
func TestCancelled(t *testing.T) {
	f, err := compile(rules(on(specs.ActAllow, "read")), specs.ArchX86_64)
	require.NoError(t, err)
	got, _ := run(f.Insns, &data{nr: 0xffffffff, arch: unix.AUDIT_ARCH_X86_64})
	require.Equal(t, eperm, got)
	got, _ = run(f.Insns, &data{nr: 0xfffffffe, arch: unix.AUDIT_ARCH_X86_64})
	require.Equal(t, kill, got)
}
