package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/stretchr/testify/require"

	"vminit/internal/rootimage"
)

// rootTree makes a directory that a guest can have as its root: this test binary
// as /sbin/vminitd, the modules and lists of an initramfs, and little else.
func rootTree(t *testing.T, image string, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(image)
	require.NoError(t, err)
	defer f.Close()
	for r := cpio.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if !h.Mode.IsRegular() || !strings.HasPrefix(h.Name, "lib/") && !strings.HasPrefix(h.Name, "etc/") {
			continue
		}
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		writeFile(t, filepath.Join(dir, h.Name), data, 0o644)
	}
	for _, d := range []string{"proc", "sys", "dev", "run", "tmp", "etc", "sbin"} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	self, err := os.ReadFile(staticSelf(t))
	require.NoError(t, err)
	writeFile(t, filepath.Join(dir, "sbin/vminitd"), self, 0o755)
	for name, content := range files {
		writeFile(t, filepath.Join(dir, name), []byte(content), 0o644)
	}
	return dir
}

func writeFile(t *testing.T, name string, data []byte, mode os.FileMode) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
	require.NoError(t, os.WriteFile(name, data, mode))
}

// What roots are tested with: a static address and two name servers.
const rootParams = "console=ttyS0 ip=10.0.2.15::10.0.2.2:255.255.255.0:box:eth0:none:10.0.2.3:9.9.9.9 systemd.machine_id=0123456789abcdef0123456789abcdef "

var userNetwork = []string{"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="}

// Roots on disks. NVMe and ext4 are what Debian's cloud kernel has built in: it
// mounts that root itself, without an initramfs; for the others an initramfs
// loads the modules and hands over, as a distribution's does.
func TestRoots(t *testing.T) {
	requireVM(t)
	img := image(t)

	t.Run("ext4 read-only", func(t *testing.T) {
		dir := rootTree(t, img, map[string]string{"etc/resolv.conf": "", "etc/hosts": "", "etc/machine-id": ""})
		require.NoError(t, os.WriteFile(filepath.Join(dir, "etc/hosts"), []byte("127.0.0.1 localhost\n"), 0o644))
		disk := filepath.Join(t.TempDir(), "disk")
		out, err := exec.Command("mkfs.ext4", "-q", "-d", dir, disk, "96M").CombinedOutput()
		require.NoError(t, err, "%s", out)
		console := vm{
			scenario: "root", params: rootParams + "root=/dev/nvme0n1 rootfstype=ext4 rootwait ro init=/sbin/vminitd",
			qemu: append([]string{"-drive", "if=none,id=d,format=raw,file=" + disk, "-device", "nvme,drive=d,serial=root"}, userNetwork...),
		}.run(t)
		require.Contains(t, console, " - ext4 /dev/root ")
	})
	t.Run("erofs", func(t *testing.T) { // without the files that cannot be made there
		disk := filepath.Join(t.TempDir(), "disk")
		_, err := rootimage.Build(t.Context(), disk, rootTree(t, img, nil), rootimage.Options{})
		require.NoError(t, err)
		console := vm{
			image: img, scenario: "switch", params: rootEnv + "=erofs " + rootParams,
			qemu: append([]string{"-drive", "if=virtio,format=raw,readonly=on,file=" + disk}, userNetwork...),
		}.run(t)
		require.Contains(t, console, " - erofs /dev/vda ")
	})
	t.Run("overlay and malformed parameters", func(t *testing.T) {
		disk := filepath.Join(t.TempDir(), "disk")
		_, err := rootimage.Build(t.Context(), disk, rootTree(t, img, nil), rootimage.Options{})
		require.NoError(t, err)
		console := vm{
			image: img, scenario: "switch", params: rootEnv + "=overlay " + thirtyMalformedParams + rootParams,
			qemu: append([]string{"-drive", "if=virtio,format=raw,readonly=on,file=" + disk}, userNetwork...),
		}.run(t)
		require.Contains(t, console, " - overlay overlay ")
		require.Contains(t, console, `step="network plan"`, "what was malformed is said")
	})
	t.Run("virtiofs", func(t *testing.T) {
		const daemon = "/usr/lib/qemu/virtiofsd" // Debian's QEMU 7.2 brings it
		if _, err := os.Stat(daemon); err != nil {
			t.Skip("no virtiofsd: later versions of QEMU do not bring one")
		}
		dir := rootTree(t, img, map[string]string{"etc/hosts": "127.0.0.1 localhost\n"})
		socket := filepath.Join(t.TempDir(), "fs.sock")
		fs := exec.CommandContext(t.Context(), daemon, "--socket-path="+socket, "-o", "source="+dir, "-o", "sandbox=chroot")
		var out strings.Builder
		fs.Stdout, fs.Stderr = &out, &out
		require.NoError(t, fs.Start())
		defer func() {
			_ = fs.Process.Kill()
			_ = fs.Wait()
			t.Log(out.String())
		}()
		require.Eventually(t, func() bool { _, err := os.Stat(socket); return err == nil }, bootTimeout, attempt)
		console := vm{
			image: img, scenario: "switch", params: rootEnv + "=virtiofs " + rootParams,
			qemu: append([]string{"-object", "memory-backend-memfd,id=mem,size=512M,share=on", "-machine", "memory-backend=mem",
				"-chardev", "socket,id=fs,path=" + socket, "-device", "vhost-user-fs-pci,chardev=fs,tag=rootfs"}, userNetwork...),
		}.run(t)
		require.Contains(t, console, " - virtiofs rootfs ")
	})
}

// Two interfaces, named by MAC in the other order, one of them with a lease of
// QEMU's own server.
func TestTwoInterfaces(t *testing.T) {
	requireVM(t)
	vm{
		image: image(t), scenario: "net", params: "console=ttyS0 systemd.hostname=named-by-host",
		flags: "-network=mac=02:00:00:00:00:02,addr=10.5.0.9/24,addr=fd05::9/64,mtu=1400 -network=mac=02:00:00:00:00:01,dhcp=true",
		qemu: []string{
			"-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile=,mac=02:00:00:00:00:01",
			"-netdev", "user,id=n1,net=10.5.0.0/24", "-device", "virtio-net-pci,netdev=n1,romfile=,mac=02:00:00:00:00:02"},
	}.run(t)
}

// None of these may keep the guest from booting.
const thirtyMalformedParams = "malformed ip=: ip=::::::::::::::: ip=x ip=[ ip=]: ip=1.2.3.4.5::::::: ip=10.0.0.2:::999::eth9:none " +
	"ip=10.0.0.3:::255.0.255.0:::none ip=:::::a/b:dhcp ip=:::::averyveryverylongdevicename:dhcp ip=:::::eth7:magic ip=fe80::1%eth0 ip=\"unclosed:x\" " +
	"ip=%s%n ip=-1 ip=0.0.0.0 ip=:::::::99999999999999 ip=::::" + longName + ":: systemd.machine_id=zz systemd.machine_id= " +
	"systemd.hostname= systemd.set_credential= systemd.set_credential=a systemd.set_credential=/../x:y systemd.set_credential_binary=a:? " +
	"systemd.set_credential=vmm.notify_socket:vsock:x:y hostname= = =x \"\" systemd.swap-extra= systemd.swap-extra=x:y systemd.swap-extra=/dev/nothing:pri=x "

const longName = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
