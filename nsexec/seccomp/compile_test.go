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
	require.Len(t, f.Insns, 268, "golden: libseccomp 2.5.4 needs 1006; better is welcome, worse needs a reason")
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
