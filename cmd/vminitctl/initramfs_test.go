package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestInitramfsOfUnknownRelease: no image without modules for a release that is
// misspelt; one for a kernel that has none, which only its image tells.
func TestInitramfsOfUnknownRelease(t *testing.T) {
	dir := t.TempDir()
	init, output, kernel := filepath.Join(dir, "init"), filepath.Join(dir, "output"), filepath.Join(dir, "vmlinux-6.1.0-nope")
	for _, name := range []string{init, kernel} {
		require.NoError(t, os.WriteFile(name, []byte("#!"), 0o755))
	}
	r := vminitctl(t, "", "initramfs", "--vminitd", init, "-o", output, "--release", "6.1.0-nope")
	require.Equal(t, 1, r.code, r.stdout)
	require.Contains(t, r.stderr, "initramfs: kernel 6.1.0-nope has neither modules nor")
	require.NoFileExists(t, output)

	r = vminitctl(t, "", "initramfs", "--vminitd", init, "-o", output, "--kernel", kernel)
	require.Zero(t, r.code, r.stderr)
	require.Contains(t, r.stdout, " 0 modules")
}
