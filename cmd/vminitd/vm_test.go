package main

import (
	"bytes"
	"context"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vminit/internal/initramfs"
)

// The tests in this file boot a real kernel under QEMU with this test binary as
// PID 1; what then runs inside is in guest_test.go.

// bootTimeout is for TCG on a busy machine; a boot takes about four seconds.
const bootTimeout = 3 * time.Minute

// attempt is the time between two looks.
const attempt = 10 * time.Millisecond

func TestMain(m *testing.M) {
	if scenario := os.Getenv(scenarioEnv); scenario != "" && os.Getpid() == 1 {
		guestMain(scenario)
	}
	if child := os.Getenv(childEnv); child != "" {
		os.Exit(childMain(child))
	}
	os.Exit(m.Run())
}

// requireVM skips a test that needs QEMU, except on the rung that promises it.
func requireVM(t *testing.T) {
	t.Helper()
	missing := func(format string, args ...any) {
		t.Helper()
		if os.Getenv("VMINIT_RUNG") == "vm" {
			t.Fatalf(format, args...)
		}
		t.Skipf(format, args...)
	}
	if testing.Short() {
		missing("boots a VM")
	}
	if runtime.GOARCH != "amd64" {
		missing("the machine is an amd64 one")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		missing("QEMU is missing: apt-get install qemu-system-x86")
	}
	if _, _, err := initramfs.FindKernel(); err != nil {
		missing("%v", err)
	}
}

// staticSelf returns a static build of this test binary: itself, unless cgo (the
// race detector) has linked it dynamically.
func staticSelf(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	f, err := elf.Open(self)
	require.NoError(t, err)
	defer f.Close()
	if f.Section(".interp") == nil {
		return self
	}
	static := filepath.Join(t.TempDir(), "vminitd.test")
	build := exec.Command("go", "test", "-c", "-tags", "no_grpc", "-o", static, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return static
}

// image builds the initramfs once for all boots of a test.
func image(t *testing.T) string {
	t.Helper()
	_, release, err := initramfs.FindKernel()
	require.NoError(t, err)
	file, err := os.Create(filepath.Join(t.TempDir(), "initramfs"))
	require.NoError(t, err)
	defer file.Close()
	c := initramfs.Usual(staticSelf(t), release)
	c.StripSignatures = true // checking them is most of the time that booting takes under TCG
	_, err = initramfs.Build(file, c)
	require.NoError(t, err)
	return file.Name()
}

// vm is one boot.
type vm struct {
	image    string
	scenario string
	params   string   // kernel parameters beside the usual ones
	flags    string   // arguments of PID 1
	qemu     []string // options of QEMU beside the usual ones
}

// run boots the machine, waits until it has ended by itself and returns what it
// wrote to its serial line.
func (v vm) run(t *testing.T) string {
	t.Helper()
	kernel, _, err := initramfs.FindKernel()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	defer cancel()
	cmdline := "quiet loglevel=3 panic=-1 cgroup_no_v1=all net.ifnames=0 " + scenarioEnv + "=" + v.scenario + " " + v.params + " -- " + v.flags
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append([]string{
		"-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none",
		"-no-reboot", "-serial", "stdio", "-kernel", kernel, "-append", cmdline,
	}, v.qemu...)...)
	if v.image != "" {
		cmd.Args = append(cmd.Args, "-initrd", v.image)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	err = cmd.Run()
	t.Logf("%s: %.1f s\n%s", v.scenario, time.Since(began).Seconds(), out.String())
	require.NoError(t, ctx.Err(), "the machine did not end")
	require.NoError(t, err)
	require.NotContains(t, out.String(), "Kernel panic")
	require.NotContains(t, out.String(), "CHECK FAIL")
	require.Contains(t, out.String(), "CHECKS DONE")
	return out.String()
}

func TestGuest(t *testing.T) {
	requireVM(t)
	img := image(t)

	t.Run("everything", func(t *testing.T) {
		disk := filepath.Join(t.TempDir(), "disk")
		out, err := exec.Command("mkfs.ext4", "-q", disk, "16M").CombinedOutput()
		require.NoError(t, err, "%s", out)
		console := vm{
			image: img, scenario: "full",
			params: "console=ttyS0 ip=10.0.2.15::10.0.2.2:255.255.255.0:box:eth0:none:10.0.2.3",
			flags:  thirtyMalformedFlags,
			qemu: []string{"-smp", "2",
				"-smbios", "type=11,value=io.systemd.credential:system.machine_id=01234567-89ab-cdef-0123-456789abcdef", "-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=",
				"-drive", "if=virtio,format=raw,file=" + disk},
		}.run(t)
		require.Equal(t, 30, strings.Count(console, "command line: "))
		require.Contains(t, console, `reason="signal interrupt"`)

		// The file written last is there, and the filesystem was unmounted.
		out, err = exec.Command("debugfs", "-R", "cat /written", disk).Output()
		require.NoError(t, err)
		require.Equal(t, "kept\n", string(out))
		out, err = exec.Command("e2fsck", "-fn", disk).CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.NotContains(t, string(out), "recovering journal")
	})
	t.Run("required", func(t *testing.T) {
		console := vm{image: img, scenario: "required", params: "console=ttyS0"}.run(t)
		require.Contains(t, console, "vminitd: cannot go on: mount /run: make mount point: mkdir /run: read-only file system")
	})
	t.Run("panic", func(t *testing.T) {
		console := vm{image: img, scenario: "panic", params: "console=ttyS0"}.run(t)
		require.Contains(t, console, "vminitd: cannot go on: panic: at the disco")
	})
	// What nobody recovers from: the console has it, and the disk what was written
	// just before.
	for scenario, text := range map[string]string{
		"crash": "panic: runtime error: invalid memory address or nil pointer dereference",
		"throw": "fatal error: sync: unlock of unlocked mutex",
	} {
		t.Run(scenario, func(t *testing.T) {
			disk := filepath.Join(t.TempDir(), "disk")
			out, err := exec.Command("mkfs.ext4", "-q", disk, "16M").CombinedOutput()
			require.NoError(t, err, "%s", out)
			console := vm{image: img, scenario: scenario, params: "console=ttyS0", qemu: []string{"-drive", "if=virtio,format=raw,file=" + disk}}.run(t)
			require.Contains(t, console, text)
			require.Contains(t, console, "(*daemon)."+scenario)
			require.Contains(t, console, "vminitd: it has failed and cannot go on, powering off")
			// Synced, though not unmounted: the journal holds it.
			out, err = exec.Command("e2fsck", "-fy", disk).CombinedOutput()
			require.Contains(t, string(out), "recovering journal", "%v", err)
			out, err = exec.Command("debugfs", "-R", "cat /written", disk).Output()
			require.NoError(t, err)
			require.Equal(t, "kept\n", string(out))
		})
	}
	t.Run("bare", func(t *testing.T) {
		vm{image: img, scenario: "bare", params: "console=", qemu: []string{"-machine", "pc,acpi=off"}}.run(t)
	})
}

// Each of these is worth one warning.
const thirtyMalformedFlags = "-a -b=c --d word - -= --=x -vsock-rpc-port=x -vsock-rpc-port=0 -vsock-rpc-port=4294967295 " +
	"-vsock-stream-port= -vsock-stream-port=-5 -vsock-cid=x -vsock-cid=99999999999 -debug=maybe -allow-local=2 " +
	"-stream-id=u64 -rpc=both -listen=vsock://1 -stream-listen=unix://x -events-forward=tcp://x -network= " +
	"-network=mac=x -network=addr=10.0.0.2/24 -config=/missing -debug-shell=x -vsock-rpc-port -rpc -network -config"
