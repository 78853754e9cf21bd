package testroot

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
	"vminit/internal/vmtest/probe/report"
)

func TestBuild(t *testing.T) {
	if _, err := findBusybox(); err != nil {
		if os.Getenv("VMINIT_RUNG") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "a", "root")
	probe, err := Probe(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, Build(dir, WithProbe(probe)))

	for p, mode := range map[string]os.FileMode{
		"": 0o755 | os.ModeDir, "tmp": 0o777 | os.ModeDir | os.ModeSticky, "proc": 0o555 | os.ModeDir,
		"root": 0o700 | os.ModeDir, "bin/busybox": 0o755, "bin/probe": 0o755, "etc/passwd": 0o644,
	} {
		fi, err := os.Lstat(filepath.Join(dir, p))
		require.NoError(t, err)
		require.Equal(t, mode, fi.Mode(), p)
	}
	for _, p := range []string{"bin/sh", "usr/bin/env", "sbin/ifconfig"} {
		target, err := filepath.EvalSymlinks(filepath.Join(dir, p))
		require.NoError(t, err)
		require.Equal(t, filepath.Join(dir, "bin/busybox"), target)
	}
	out, err := exec.Command(filepath.Join(dir, "bin/busybox"), "echo", "hello").Output()
	require.NoError(t, err)
	require.Equal(t, "hello", strings.TrimSpace(string(out)))

	out, err = exec.Command(filepath.Join(dir, "bin/probe")).Output()
	require.NoError(t, err)
	var r report.Report
	require.NoError(t, json.Unmarshal(out, &r))
	require.True(t, r.Early, "the probe was linked without its own entry point")

	require.ErrorIs(t, Build(dir), sys.ErrExists)
}

func TestBuildErrors(t *testing.T) {
	sh, err := filepath.EvalSymlinks("/bin/sh")
	require.NoError(t, err)
	require.ErrorContains(t, Build(filepath.Join(t.TempDir(), "r"), WithBusybox(sh)), "dynamically linked")
	require.ErrorIs(t, Build(filepath.Join(t.TempDir(), "r"), WithProbe("/nonesuch")), os.ErrNotExist)
	t.Setenv(ProbeEnv, "/nonesuch")
	_, err = Probe(t.TempDir())
	require.ErrorContains(t, err, ProbeEnv)
}

func TestUsersMatchConstants(t *testing.T) {
	require.Contains(t, files["etc/passwd"], "user:x:1000:1000:")
	require.Contains(t, files["etc/group"], "extra:x:1001:user")
	require.Equal(t, []int{1000, 1001}, []int{User, Extra})
}
