package nsexec

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

func TestParseCaps(t *testing.T) {
	const kill, chown, bpf = 1 << 5, 1 << 0, 1 << 39
	s, warnings := parseCaps(nil, math.MaxUint64)
	require.Zero(t, s)
	require.Empty(t, warnings)

	all := []string{"CAP_KILL", "cap_chown", "BPF"}
	s, warnings = parseCaps(&specs.LinuxCapabilities{Bounding: all, Effective: all[:1], Permitted: all[:2], Inheritable: all[:1], Ambient: all[:1]}, math.MaxUint64)
	require.Equal(t, capSets{bounding: kill | chown | bpf, effective: kill, permitted: kill | chown, inheritable: kill, ambient: kill}, s)
	require.Empty(t, warnings)

	// What cannot be had is left out, and said.
	s, warnings = parseCaps(&specs.LinuxCapabilities{
		Bounding: []string{"CAP_KILL", "CAP_BPF", "CAP_MOON"}, Effective: []string{"CAP_KILL", "CAP_CHOWN"}, Permitted: []string{"CAP_KILL"},
		Inheritable: []string{"CAP_CHOWN", "CAP_KILL"}, Ambient: []string{"CAP_KILL", "CAP_CHOWN"},
	}, math.MaxUint64&^bpf)
	require.Equal(t, capSets{bounding: kill, effective: kill, permitted: kill, inheritable: kill, ambient: kill}, s)
	require.Equal(t, []string{
		"process.capabilities.bounding: CAP_MOON is left out: there is no such capability",
		"process.capabilities.bounding: CAP_BPF is left out: the daemon does not have it to give",
		"process.capabilities.effective: CAP_CHOWN is left out: it is not permitted",
		"process.capabilities.inheritable: CAP_CHOWN is left out: it is not in the bounding set",
		"process.capabilities.ambient: CAP_CHOWN is left out: it is not both permitted and inheritable",
	}, warnings)
}

// A hostile config lists any number of capabilities that nobody knows.
func TestManyUnknownCaps(t *testing.T) {
	many := slices.Repeat([]string{"CAP_" + strings.Repeat("X", 1000)}, 100_000)
	_, warnings := parseCaps(&specs.LinuxCapabilities{Bounding: many}, math.MaxUint64)
	require.Len(t, warnings, maxCapWarnings+1)
	require.Equal(t, "process.capabilities.bounding: 99980 more are left out: there is no such capability", warnings[maxCapWarnings])
	require.Less(t, len(warnings[0]), 200)
}

func TestCapabilityNames(t *testing.T) {
	names := Capabilities()
	require.Len(t, names, 41)
	require.Equal(t, "CAP_CHOWN", names[0])
	require.Equal(t, "CAP_CHECKPOINT_RESTORE", names[40])
}
