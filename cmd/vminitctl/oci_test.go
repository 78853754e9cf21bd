package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "-1": -1, "1": 1, "64M": 64 << 20, "1g": 1 << 30, "2KiB": 2048, "3tb": 3 << 40, "7b": 7} {
		got, err := parseBytes(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, bad := range []string{"", "-2", "M", "1.5G", "1 M", "5x", "99999999999999999999", "99999999T", "1bk"} {
		_, err := parseBytes(bad)
		require.ErrorIs(t, err, sys.ErrInvalid, bad)
	}
}

func TestPlanLines(t *testing.T) {
	require.Equal(t, []planLine{
		{Step: "make the process", Call: "clone3", Text: "clone3({flags=X})"},
		{Step: "mount it", Call: "fsmount", Text: "fsmount($fd) = $m; if that worked:"},
		{Step: "mount it", Depth: 1, Text: "*memory = $m"},
		{Step: "mount it", Depth: 1, Text: "wait at gate start"},
	}, planLines("clone3({flags=X})\n# mount it\nfsmount($fd) = $m; if that worked:\n  *memory = $m\n  wait at gate start\n"))
}
