package vhostvsock

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// modules the guest's kernel needs, in the order of their dependencies.
var guestModules = []string{
	"drivers/virtio/virtio_ring.ko", "drivers/virtio/virtio.ko",
	"drivers/virtio/virtio_pci_legacy_dev.ko", "drivers/virtio/virtio_pci_modern_dev.ko", "drivers/virtio/virtio_pci.ko",
	"net/vmw_vsock/vsock.ko", "net/vmw_vsock/vmw_vsock_virtio_transport_common.ko", "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
}

// requireQEMU skips a test where there is no QEMU or kernel for it, which rung
// root has to have, and returns the kernel and the directory of its modules.
func requireQEMU(t testing.TB) (kernel, modules string) {
	missing := func(format string, args ...any) {
		t.Helper()
		if os.Getenv("VMINIT_RUNG") == "root" {
			t.Fatalf(format, args...)
		}
		t.Skipf(format, args...)
	}
	if testing.Short() {
		missing("boots a virtual machine")
	}
	if runtime.GOARCH != "amd64" {
		missing("the guest is an amd64 one")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		missing("no qemu-system-x86_64: apt-get install qemu-system-x86")
	}
	kernels, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	if len(kernels) == 0 {
		missing("no kernel: apt-get install linux-image-cloud-amd64")
	}
	kernel = kernels[len(kernels)-1]
	return kernel, "/lib/modules/" + strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-") + "/kernel/"
}

// buildInitramfs compiles testdata/guest and packs it with its modules.
func buildInitramfs(t testing.TB, modules string) string {
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/init", "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	var image bytes.Buffer
	put := func(name string, mode uint32, data []byte) {
		fmt.Fprintf(&image, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		image.WriteString(name + "\x00")
		image.Write(make([]byte, -image.Len()&3))
		image.Write(data)
		image.Write(make([]byte, -image.Len()&3))
	}
	file := func(name, path string) {
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		put(name, 0o100755, data)
	}
	file("init", dir+"/init")
	put("modules", 0o40755, nil)
	var list []string
	for _, m := range guestModules {
		file("modules/"+filepath.Base(m), modules+m)
		list = append(list, filepath.Base(m))
	}
	put("modules/list", 0o100644, []byte(strings.Join(list, "\n")))
	put("dev", 0o40755, nil)
	put("TRAILER!!!", 0, nil)
	require.NoError(t, os.WriteFile(dir+"/initramfs", image.Bytes(), 0o600))
	return dir + "/initramfs"
}

// console collects what the guest prints.
type console struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Write(b)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.String()
}

// machine is a virtual machine under test.
type machine struct {
	t       testing.TB
	dev     *Device
	initrd  string
	kernel  string
	console console
	qemu    *exec.Cmd
	exited  chan struct{}
	qmpPath string
}

// newMachine starts a device and QEMU, and waits for the guest's services.
func newMachine(t testing.TB, extra ...string) *machine {
	kernel, modules := requireQEMU(t)
	checkLeaks(t)
	m := &machine{t: t, kernel: kernel, initrd: buildInitramfs(t, modules)}
	dir, err := os.MkdirTemp("", "vsock") // short enough for a socket path
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	m.dev, err = New(Config{
		SocketPath: dir + "/vs", GuestCID: 3,
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- m.dev.Serve(context.Background()) }()
	t.Cleanup(func() {
		require.NoError(t, m.dev.Close())
		require.NoError(t, <-served)
	})
	m.qmpPath = dir + "/qmp"
	m.start(extra...)
	return m
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// start runs QEMU until the test ends and waits for the guest.
func (m *machine) start(extra ...string) {
	args := append([]string{
		"-accel", "tcg", "-machine", "q35,memory-backend=mem", "-nodefaults", "-no-user-config", "-nographic", "-serial", "stdio",
		"-object", "memory-backend-memfd,id=mem,size=512M,share=on", "-m", "512M",
		"-chardev", "socket,id=vs,path=" + m.dev.cfg.SocketPath, "-device", "vhost-user-vsock-pci,chardev=vs",
		"-kernel", m.kernel, "-initrd", m.initrd, "-append", "console=ttyS0 quiet panic=-1",
		"-qmp", "unix:" + m.qmpPath + ",server=on,wait=off",
	}, extra...)
	m.qemu = exec.Command("qemu-system-x86_64", args...)
	m.qemu.Stdout, m.qemu.Stderr = &m.console, &m.console
	require.NoError(m.t, m.qemu.Start())
	exited := make(chan struct{})
	m.exited = exited
	qemu := m.qemu
	go func() {
		_ = qemu.Wait()
		close(exited)
	}()
	m.t.Cleanup(func() {
		_ = qemu.Process.Kill()
		<-exited
		if m.t.Failed() {
			m.t.Log(m.console.String())
		}
	})
	m.waitReady()
}

// waitReady dials until the guest answers.
func (m *machine) waitReady() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		c, err := m.dev.Dial(ctx, 999)
		if err == nil {
			require.NoError(m.t, c.Close())
			return
		}
		select {
		case <-m.exited:
			m.t.Fatalf("QEMU has exited: %s", m.console.String())
		case <-ctx.Done():
			m.t.Fatalf("guest does not answer: %v: %s", err, m.console.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// dial connects to one of the guest's services.
func (m *machine) dial(port uint32) *Conn {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := m.dev.Dial(ctx, port)
	require.NoError(m.t, err)
	require.NoError(m.t, c.SetDeadline(time.Now().Add(2*time.Minute)))
	return c
}

func readAll(t testing.TB, r io.Reader) []byte {
	t.Helper()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}
