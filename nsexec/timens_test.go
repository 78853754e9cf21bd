package nsexec

import (
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

func TestParseTimeOffsets(t *testing.T) {
	got, err := ParseTimeOffsets(map[string]specs.LinuxTimeOffset{"monotonic": {Secs: -1, Nanosecs: 999_999_999}, "boottime": {Secs: 1 << 40}})
	require.NoError(t, err)
	require.Equal(t, TimeOffsets("boottime 1099511627776 0\nmonotonic -1 999999999\n"), got)
	for clock, o := range map[string]specs.LinuxTimeOffset{"realtime": {}, "monotonic\n": {}, "boottime": {Nanosecs: 1e9}} {
		got, err := ParseTimeOffsets(map[string]specs.LinuxTimeOffset{clock: o})
		require.ErrorIs(t, err, sys.ErrInvalid)
		require.Empty(t, got)
	}
}
