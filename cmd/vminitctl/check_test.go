package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/kcheck"
)

// TestCheck probes the kernel of this machine.
func TestCheck(t *testing.T) {
	r := vminitctl(t, "", "--json", "check")
	require.Zero(t, r.code, r.stderr)
	var report checkReport
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &report))
	require.Len(t, report.Features, len(kcheck.Features()))
	require.NotEmpty(t, report.Kernel)

	r = vminitctl(t, "", "check")
	require.Zero(t, r.code, r.stderr)
	require.Contains(t, r.stdout, "Linux "+report.Kernel)
	require.Regexp(t, `(?m)^clone3 +5\.3 +required +works$`, r.stdout)
}

func TestCheckArguments(t *testing.T) {
	r := vminitctl(t, "", "check", "what")
	require.Equal(t, result{code: 1, stderr: "vminitctl: check: unexpected argument \"what\"; a VM is named with --vm NAME\n"}, r)
	r = vminitctl(t, "", "check", "--vm", "nosuch")
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "nosuch")
	r = vminitctl(t, "", "check", "--inside", "nosuch")
	require.Equal(t, 1, r.code)
}

func TestCheckText(t *testing.T) {
	r := checkReport{Kernel: "1.2", Arch: "z80", Features: []kcheck.Row{
		{Name: "a", Since: "1.0", Need: kcheck.Required, Status: kcheck.Works, Note: "well", Loses: "all"},
		{Name: "longer", Since: "1.1", Need: kcheck.Used, Status: kcheck.Missing, Errno: "ENOSYS", Loses: "something"},
		{Name: "c", Since: "1.1", Need: kcheck.Optional, Status: kcheck.Unavailable, Note: "off", Loses: "little"},
	}, Conformance: []conformanceRow{
		{Feature: "a", Kernel: kcheck.Works, Result: shows, Saw: "it"},
		{Feature: "longer", Kernel: kcheck.Missing, Result: notMade},
	}}
	require.Equal(t, `Linux 1.2 (z80)

FEATURE  SINCE  NEED      HERE
a        1.0    required  works           well
longer   1.1    used      missing ENOSYS  something
c        1.1    optional  unavailable     little; off

3 features: 1 work, 1 missing, 0 denied, 1 unavailable

FEATURE  KERNEL   CONTAINER  SAW
a        works    shows      it
longer   missing  skipped

2 exercised: 1 show, 0 fail, 1 skipped
`, r.text())
	require.NoError(t, conformanceVerdict(r.Conformance))
	r.Conformance[0].Result = fails
	require.ErrorContains(t, conformanceVerdict(r.Conformance), `["a"]`)
}

// TestCheckVM probes a guest and exercises its features. What Debian's Linux
// 6.1 has is in testdata/check-6.1.golden, what our small one has in check-small.golden.
func TestCheckVM(t *testing.T) {
	b := requireVM(t)
	binary := buildSelf(t)
	r := vminitctl(t, "", "--json", "check", "--vm", "--conformance", "--vminitd", b.daemon, "--binary", binary)
	require.Zero(t, r.code, r.stderr)
	var report checkReport
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &report), r.stdout)
	for _, f := range report.Features {
		if f.Need == kcheck.Required {
			require.Equal(t, kcheck.Works, f.Status, f.Name)
		}
	}
	requireConformance(t, report, 55)
	for _, c := range report.Conformance {
		require.Equal(t, c.Kernel == kcheck.Works, c.Result == shows, "%+v", c)
	}
	require.Contains(t, report.Kernel, "6.1.", "the golden files are for Debian's kernel and our small one")
	_, table, _ := strings.Cut(report.text(), "\n\n")
	table, _, _ = strings.Cut(table, "\n\nFEATURE") // what conformance is about is checked above
	golden := filepath.Join("testdata", "check-6.1.golden")
	if strings.HasSuffix(report.Kernel, "-vminit") {
		golden = filepath.Join("testdata", "check-small.golden")
	}
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(table+"\n"), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), table+"\n", "go test -update rewrites it")
	requireNothingLeft(t)
}

// TestCheckDaemon exercises features through a daemon on this machine, in a
// mount namespace with a cgroup2 of its own.
func TestCheckDaemon(t *testing.T) {
	rung := os.Getenv("VMINIT_RUNG")
	if os.Getuid() != 0 || rung != "" && rung != "root" {
		t.Skip("makes containers on this machine: belongs to rung root")
	}
	b, err := artifacts()
	require.NoError(t, err)
	binary := buildSelf(t)
	dir := filepath.Join(scratch(), "check")
	require.NoError(t, os.Mkdir(dir, 0o700))
	rpc, stream := dir+"/rpc.sock", dir+"/stream.sock"
	daemon := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c",
		"mount -t cgroup2 none /sys/fs/cgroup && exec "+b.daemon+" -listen unix://"+rpc+" -stream-listen unix://"+stream)
	daemon.Stderr = os.Stderr
	require.NoError(t, daemon.Start())
	defer func() {
		require.NoError(t, daemon.Process.Signal(unix.SIGTERM))
		require.NoError(t, daemon.Wait())
	}()
	require.Eventually(t, func() bool {
		_, err := os.Stat(stream)
		return err == nil
	}, 20*time.Second, 20*time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(daemon.Process.Pid), "-m", binary, "--address", "unix://"+rpc, "--json", "check", "--conformance")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s", out)
	var report checkReport
	require.NoError(t, json.Unmarshal(out, &report))
	requireConformance(t, report, 40)
}

// requireConformance: at least so many features show, and none fails to.
func requireConformance(t *testing.T, r checkReport, least int) {
	t.Helper()
	shown := 0
	for _, c := range r.Conformance {
		require.NotEqual(t, fails, c.Result, "%+v", c)
		if c.Result == shows {
			shown++
		}
	}
	require.GreaterOrEqual(t, shown, least)
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "vminit-check-*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// buildSelf builds vminitctl as a guest can run it.
func buildSelf(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "vminitctl")
	build := exec.Command("go", "build", "-tags", "no_grpc", "-ldflags", "-s -w", "-o", binary, "vminit/cmd/vminitctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return binary
}
