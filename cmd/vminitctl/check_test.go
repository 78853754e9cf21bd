package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

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
// 6.1 has is in testdata/check-6.1.golden.
func TestCheckVM(t *testing.T) {
	b := requireVM(t)
	binary := filepath.Join(t.TempDir(), "vminitctl")
	build := exec.Command("go", "build", "-tags", "no_grpc", "-ldflags", "-s -w", "-o", binary, "vminit/cmd/vminitctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	r := vminitctl(t, "", "--json", "check", "--vm", "--conformance", "--vminitd", b.daemon, "--binary", binary)
	require.Zero(t, r.code, r.stderr)
	var report checkReport
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &report))
	for _, f := range report.Features {
		if f.Need == kcheck.Required {
			require.Equal(t, kcheck.Works, f.Status, f.Name)
		}
	}
	exercised := 0
	for _, c := range report.Conformance {
		if c.Kernel == kcheck.Works {
			require.Equal(t, shows, c.Result, "%+v", c)
			exercised++
		}
	}
	require.GreaterOrEqual(t, exercised, 50)
	require.Contains(t, report.Kernel, "6.1.", "the golden file is for Debian's kernel")
	_, table, _ := strings.Cut(report.text(), "\n\n")
	table, _, _ = strings.Cut(table, "\n\nFEATURE") // what conformance is about is checked above
	golden := filepath.Join("testdata", "check-6.1.golden")
	if *update {
		require.NoError(t, os.WriteFile(golden, []byte(table+"\n"), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), table+"\n", "go test -update rewrites it")
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "vminit-check-root-*"))
	require.NoError(t, err)
	require.Empty(t, left)
	requireNothingLeft(t)
}
