package main

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBootTimesOut: vm boot says not only that it took too long but also what
// the supervisor found. The emulator is one that never says anything.
func TestBootTimesOut(t *testing.T) {
	qemu, ok := map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[runtime.GOARCH]
	if !ok {
		t.Skip("no microVMs on ", runtime.GOARCH)
	}
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, qemu), []byte("#!/bin/sh\nexec sleep 60\n"), 0o755))
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("neither kernel nor image"), 0o600))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	r := vminitctl(t, "", "--timeout", "1s", "vm", "boot", "--name", "mute", "--accel", "tcg", "--kernel", file, "--initrd", file)
	require.Equal(t, 1, r.code)
	require.Contains(t, r.stderr, "vm boot: not done within 1s: context deadline exceeded: boot VM mute: talk to QEMU")
}
