package house

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// sleepers sleep or look again and again.
var sleepers = regexp.MustCompile(`time\.(Sleep|Tick|NewTicker)\(`)

// No step of a boot sleeps or polls: what takes its time is waited for by
// events. ondemand.go is not part of a boot: it waits for the daemon's last user.
func TestBootDoesNotSleep(t *testing.T) {
	looked := 0
	for _, dir := range []string{".", "boot", "devices", "netup"} {
		files, err := filepath.Glob(filepath.Join("../../cmd/vminitd", dir, "*.go"))
		require.NoError(t, err)
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") || filepath.Base(f) == "ondemand.go" {
				continue
			}
			b, err := os.ReadFile(f)
			require.NoError(t, err)
			require.NotRegexp(t, sleepers, string(b), f)
			looked++
		}
	}
	require.Greater(t, looked, 30)
}
