package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vminit/internal/initramfs"
	"vminit/internal/microvm"
	"vminit/internal/vmtest/testroot"
)

// selfEnv turns this test binary into vminitctl.
const selfEnv = "VMINITCTL_TEST_SELF"

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	if os.Getenv(selfEnv) != "" {
		main()
	}
	code := m.Run()
	_ = os.RemoveAll(scratch())
	os.Exit(code)
}

// scratch is this test binary's directory, with a path short enough for sockets.
func scratch() string { return filepath.Join(os.TempDir(), fmt.Sprintf("vmctl-%d", os.Getpid())) }

// built are what the guests of the tests are made of.
type built struct{ daemon, root string }

var artifacts = sync.OnceValues(func() (b built, err error) {
	b = built{filepath.Join(scratch(), "vminitd"), filepath.Join(scratch(), "root")}
	if err := os.MkdirAll(scratch(), 0o700); err != nil {
		return b, err
	}
	build := exec.Command("go", "build", "-tags", "no_grpc", "-ldflags", "-s -w", "-o", b.daemon, "vminit/cmd/vminitd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return b, fmt.Errorf("build vminitd: %w: %s", err, out)
	}
	return b, testroot.Build(b.root)
})

// requireVM makes sure that this is the rung for microVMs, or skips.
func requireVM(t *testing.T) built {
	t.Helper()
	rung := os.Getenv("VMINIT_RUNG")
	if rung != "vm" && (testing.Short() || rung != "") {
		t.Skip("boots a microVM: belongs to rung vm")
	}
	_, _, kernel := initramfs.FindKernel()
	if err := errors.Join(kernel, microvm.CheckQEMU()); err != nil {
		if rung == "vm" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	b, err := artifacts()
	require.NoError(t, err)
	return b
}

// result is what a command has left.
type result struct {
	code           int
	stdout, stderr string
}

// command is this binary as vminitctl, in an environment of its own.
func command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), selfEnv+"=1", microvm.StateDirEnv+"="+filepath.Join(scratch(), "vminit"), "XDG_CACHE_HOME="+filepath.Join(scratch(), "cache"))
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// vminitctl runs a command to its end.
func vminitctl(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", args, err)
	}
	require.NoError(t, ctx.Err(), "%s\n%s%s", args, stdout.String(), stderr.String())
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}
