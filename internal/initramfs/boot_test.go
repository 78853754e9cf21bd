package initramfs

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestBoot boots the installed kernel under TCG with an image made here and
// checks that every module of both lists loads.
func TestBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a virtual machine")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		skipBoot(t, "no qemu-system-x86_64: apt-get install qemu-system-x86")
	}
	kernel, release, err := FindKernel()
	if err != nil {
		skipBoot(t, err.Error())
	}
	dir := t.TempDir()
	initBin := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", initBin, "./testdata/bootinit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))

	for _, c := range []Config{
		{Compression: Zstd},
		{Compression: Gzip, StripSignatures: true},
		{Compression: None, Modules: []string{}, LateModules: []string{"overlay"}},
	} {
		c.Init, c.KernelRelease = initBin, release
		if c.Modules == nil {
			c.Modules, c.LateModules, c.RestModules = DefaultModules(), DefaultLateModules(), DefaultRestModules()
		}
		t.Run(c.Compression, func(t *testing.T) {
			img, err := os.Create(filepath.Join(t.TempDir(), "initramfs"))
			require.NoError(t, err)
			info, err := Build(img, c)
			require.NoError(t, err)
			require.NoError(t, img.Close())

			console := boot(t, qemu, kernel, img.Name())
			for _, m := range slices.Concat(info.Modules, info.LateModules, info.RestModules) {
				if strings.HasSuffix(m, "/ptp_kvm.ko") { // for machines under KVM, which this is none of
					require.Contains(t, console, "@module "+m+": operation not supported")
					continue
				}
				require.Contains(t, console, "@module "+m+": <nil>")
			}
			if len(info.Modules) == 0 {
				require.Contains(t, console, BootList+": no such file")
			}
			require.Contains(t, console, "@done")
			require.Contains(t, console, "reboot: Power down", "the guest did not power off")
		})
	}
}

// boot runs a guest until it powers off and returns its console.
func boot(t *testing.T, qemu, kernel, initrd string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-cpu", "max", "-machine", "q35", "-m", "512",
		"-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1").CombinedOutput()
	console := strings.ReplaceAll(string(out), "\r", "")
	require.NoError(t, err, console)
	for line := range strings.Lines(console) {
		if strings.HasPrefix(line, "@init") || strings.HasPrefix(line, "@serve") {
			t.Log(strings.TrimSpace(line))
		}
	}
	return console
}

// skipBoot skips on machines without the parts, unless this rung demands them.
func skipBoot(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("VMINIT_RUNG") == "root" {
		t.Fatal(why)
	}
	t.Skip(why)
}
