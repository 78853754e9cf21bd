package testroot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ProbeEnv names a probe that was built beforehand, for tests that run where
// there is no Go toolchain, as inside a guest.
const ProbeEnv = "VMINIT_PROBE"

// ProbeLDFlags are the linker flags the probe wants: its own entry point sees
// what the Go runtime changes when it starts.
const ProbeLDFlags = "-s -w -E vminit_probe_entry"

// Probe returns the path of a probe binary: that of $VMINIT_PROBE, or one that
// it builds as dir/probe, for which the working directory must be within the
// module, as it is in every test.
func Probe(dir string) (string, error) {
	if p := os.Getenv(ProbeEnv); p != "" {
		if err := checkStatic(p); err != nil {
			return "", fmt.Errorf("$%s: %w", ProbeEnv, err)
		}
		return p, nil
	}
	dst := filepath.Join(dir, "probe")
	build := exec.Command("go", "build", "-trimpath", "-ldflags="+ProbeLDFlags, "-o", dst, "vminit/internal/vmtest/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the probe (or name one in $%s): %w: %s", ProbeEnv, err, strings.TrimSpace(string(out)))
	}
	return dst, nil
}
