package boot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestChooseHostname(t *testing.T) {
	for _, tt := range []struct{ asked, current, file, want string }{
		{"", "(none)", "", fallbackHostname},
		{"", "(none)", "file", "file"},
		{"", "kernel", "file", "kernel"},
		{"asked", "kernel", "file", "asked"},
		{strings.Repeat("x", 65), "(none)", "", fallbackHostname},
	} {
		require.Equal(t, tt.want, chooseHostname(tt.asked, tt.current, tt.file))
	}
}

func TestSysctlsRespectTheHost(t *testing.T) {
	has := func(path string, params []Param) bool {
		for _, s := range Sysctls(params) {
			if s.Path == path {
				return true
			}
		}
		return false
	}
	require.True(t, has("/proc/sys/kernel/panic", nil))
	require.False(t, has("/proc/sys/kernel/panic", []Param{{"panic", "0"}}))

	s := Sysctl{Value: "1", When: []string{"0"}}
	require.True(t, s.wanted("0"))
	require.False(t, s.wanted("2"), "a stricter value stays")
	require.True(t, Sysctl{}.wanted("anything"))
}

func TestApplySysctls(t *testing.T) {
	file := filepath.Join(t.TempDir(), "setting")
	require.NoError(t, os.WriteFile(file, []byte("0\n"), 0o600))
	require.NoError(t, ApplySysctls([]Sysctl{
		{Path: file, Value: "1", When: []string{"0"}},
		{Path: file + ".missing", Value: "1"},
	}))
	got, err := readString(file)
	require.NoError(t, err)
	require.Equal(t, "1", strings.TrimSpace(got))
}

func TestEnableControllers(t *testing.T) {
	require.ErrorContains(t, enableControllers(t.TempDir(), nil), "cgroup_no_v1=all")
	err := enableControllers(t.TempDir(), []string{"cpu", "memory"})
	require.True(t, errors.Is(err, os.ErrNotExist), "%v", err)
}

func TestIsNull(t *testing.T) {
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	require.True(t, isNull(int(null.Fd())))
	zero, err := os.Open("/dev/zero")
	require.NoError(t, err)
	defer zero.Close()
	require.False(t, isNull(int(zero.Fd())))
	require.False(t, isNull(-1))
}

func TestMountString(t *testing.T) {
	require.Equal(t, "mount /proc", Mounts()[0].String())
}
