package tasksvc

import (
	"encoding/json"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

// TestFeatures: what is promised is kept by the compiler.
func TestFeatures(t *testing.T) {
	f := Features("1.2.3")
	data, err := json.MarshalIndent(f, "", "  ")
	require.NoError(t, err)
	golden(t, "features.golden", string(data)+"\n")

	accepted := func(what string, edit func(*specs.Spec)) {
		s := plainSpec()
		edit(s)
		pl, err := compileBytes(t, s)
		require.NoError(t, err, what)
		require.Empty(t, pl.warnings, what)
		require.NoError(t, pl.program.Close())
	}
	for _, v := range []string{f.OCIVersionMin, f.OCIVersionMax} {
		accepted(v, func(s *specs.Spec) { s.Version = v })
	}
	accepted("capabilities", func(s *specs.Spec) {
		all := f.Linux.Capabilities
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: all, Ambient: all}
	})
	accepted("namespaces", func(s *specs.Spec) {
		fullUserNS(s)
		s.Linux.Namespaces = nil
		for _, n := range f.Linux.Namespaces {
			addNamespaces(s, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(n)})
		}
	})
	for _, mode := range f.Linux.MemoryPolicy.Modes {
		accepted(mode, func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MemoryPolicyModeType(mode)}
			for _, flag := range f.Linux.MemoryPolicy.Flags {
				s.Linux.MemoryPolicy.Flags = append(s.Linux.MemoryPolicy.Flags, specs.MemoryPolicyFlagType(flag))
			}
		})
	}
}
