package microvm

import (
	"os"
	"regexp"
	"runtime"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTSC: measuring twice gives the same within 1 %, and what the kernel of a
// virtual machine says, which is no processor's momentary speed there.
func TestTSC(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		require.Zero(t, tscKHz())
		return
	}
	first, second := float64(tscKHz()), float64(tscKHz())
	require.NotZero(t, first)
	require.InEpsilon(t, first, second, 0.01)
	info, err := os.ReadFile("/proc/cpuinfo")
	require.NoError(t, err)
	mhz := regexp.MustCompile(`(?m)^cpu MHz\s*: ([0-9.]+)$`).FindSubmatch(info)
	if mhz == nil || !regexp.MustCompile(`(?m)^flags.* hypervisor`).Match(info) {
		return
	}
	said, err := strconv.ParseFloat(string(mhz[1]), 64)
	require.NoError(t, err)
	require.InEpsilon(t, 1000*said, first, 0.01)
}
