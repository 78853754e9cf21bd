package seccomp

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

// TestNames has every name compile.
func TestNames(t *testing.T) {
	profile := func(edit func(*specs.LinuxSeccomp)) *specs.LinuxSeccomp {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: Architectures(), Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActErrno}}}
		edit(p)
		return p
	}
	for _, a := range Actions() {
		_, err := Compile(profile(func(p *specs.LinuxSeccomp) { p.Syscalls[0].Action, p.ListenerPath = a, "/run/agent" }))
		require.NoError(t, err, a)
	}
	for _, op := range Operators() {
		_, err := Compile(profile(func(p *specs.LinuxSeccomp) {
			p.Syscalls[0].Args = []specs.LinuxSeccompArg{{Index: 1, Value: 7, ValueTwo: 3, Op: op}}
		}))
		require.NoError(t, err, op)
	}
	for _, arch := range Architectures() {
		require.NotNil(t, knownArch(arch), arch)
	}
	for _, f := range Flags() {
		_, err := Compile(profile(func(p *specs.LinuxSeccomp) {
			p.Flags, p.Syscalls[0].Action, p.ListenerPath = []specs.LinuxSeccompFlag{f}, specs.ActNotify, "/run/agent"
		}))
		require.NoError(t, err, f)
	}
}
