package microvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	systemapi "vminit/api/services/system/v1"
	"vminit/internal/initramfs"
	"vminit/internal/sys"
)

// bootTimeout is for TCG on a busy machine; a boot takes some three seconds.
const bootTimeout = 2 * time.Minute

// ownerEnv turns this test binary into the owner of a machine.
const ownerEnv = "MICROVM_TEST_OWNER"

func TestMain(m *testing.M) {
	if name := os.Getenv(ownerEnv); name != "" {
		ownerMain(name)
	}
	code := m.Run()
	_ = os.RemoveAll(imageDir())
	os.Exit(code)
}

// imageDir is where guestImage puts what it builds.
func imageDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("microvm-test-%d", os.Getpid()))
}

// requireVM makes sure that this is the rung for microVMs, or skips.
func requireVM(t *testing.T) {
	t.Helper()
	rung := os.Getenv("VMINIT_RUNG")
	if rung != "vm" && (testing.Short() || rung != "") {
		t.Skip("boots a microVM: belongs to rung vm")
	}
	_, _, kernel := initramfs.FindKernel()
	if err := errors.Join(kernel, CheckQEMU()); err != nil {
		if rung == "vm" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// guestImage builds vminitd and an image with it, once for all tests.
var guestImage = sync.OnceValues(func() (string, error) {
	dir := imageDir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	daemon := filepath.Join(dir, "vminitd")
	build := exec.Command("go", "build", "-tags", "no_grpc", "-ldflags", "-s -w", "-o", daemon, "vminit/cmd/vminitd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	_, release, err := initramfs.FindKernel()
	if err != nil {
		return "", err
	}
	f, err := os.Create(filepath.Join(dir, "initramfs"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	_, err = initramfs.Build(f, initramfs.Usual(daemon, release))
	return f.Name(), err
})

// testConfig is a machine that would boot. Its state root is short enough for
// sockets and must be empty in the end.
func testConfig(t *testing.T) Config {
	t.Helper()
	requireVM(t)
	image, err := guestImage()
	require.NoError(t, err)
	kernel, _, err := initramfs.FindKernel()
	require.NoError(t, err)
	root, err := os.MkdirTemp("", "vms")
	require.NoError(t, err)
	t.Cleanup(func() {
		left, err := os.ReadDir(root)
		require.NoError(t, err)
		require.Empty(t, left)
		require.NoError(t, os.RemoveAll(root))
	})
	return Config{
		Name: "t", StateRoot: root, Kernel: kernel, Initrd: image, Accel: Accel{TCG, "a test"},
		Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout)
	t.Cleanup(cancel)
	return ctx
}

func TestBoot(t *testing.T) {
	c := testConfig(t)
	ctx := testContext(t)
	// The guest uses none of this; QEMU must take it.
	disk, unlinked := filepath.Join(t.TempDir(), "disk, raw"), filepath.Join(t.TempDir(), "gone")
	for _, path := range []string{disk, unlinked} {
		require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	}
	f, err := os.Open(unlinked)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, os.Remove(unlinked))
	c.Disks = []Disk{{Path: disk, Serial: "data"}, {File: f, ReadOnly: true}}
	if loop := loopDevice(t, f); loop != nil {
		c.Disks = append(c.Disks, Disk{File: loop, ReadOnly: true}, Disk{Path: loop.Name(), ReadOnly: true})
	}
	c.Shares = []Share{{Dir: t.TempDir(), Tag: "share0", ReadOnly: true}}
	c.HotplugSlots = 1
	vm, err := Boot(ctx, c)
	require.NoError(t, err)
	ended := false
	defer func() {
		if !ended {
			vm.Kill()
		}
	}()

	client, err := vm.Client(ctx)
	require.NoError(t, err)
	defer client.Close()
	info, err := systemapi.NewTTRPCSystemClient(client).Info(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	require.NotEmpty(t, info.KernelVersion)

	_, err = Boot(ctx, c)
	require.ErrorIs(t, err, sys.ErrExists)

	in, err := Find(c.StateRoot, c.Name)
	require.NoError(t, err)
	require.True(t, in.Ready)
	conn, err := in.Dial(ctx, RPCPort)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	_, err = vm.Dial(ctx, 4711)
	require.ErrorIs(t, err, unix.ECONNREFUSED)

	stream, err := vm.OpenStream(ctx, "7")
	require.NoError(t, err)
	require.NoError(t, stream.Close())

	began := time.Now()
	require.NoError(t, vm.Shutdown(ctx))
	ended = true
	for i, m := range vm.Marks() {
		t.Logf("%8.1f ms  %s", float64(m.At.Sub(vm.Marks()[0].At).Microseconds())/1000, m.Name)
		require.True(t, i == 0 || !m.At.Before(vm.Marks()[i-1].At))
	}
	t.Logf("shutdown took %v", time.Since(began))
	_, err = Find(c.StateRoot, c.Name)
	require.ErrorIs(t, err, sys.ErrNotFound)
}

// loopDevice makes a read-only block device of a file, which is gone once it and
// all who use it have closed it; nil for who may not.
func loopDevice(t *testing.T, backing *os.File) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		return nil
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	require.NoError(t, err)
	defer control.Close()
	config := &unix.LoopConfig{
		Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_READ_ONLY},
	}
	for range 10 { // somebody else may take the one that was free
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		require.NoError(t, err)
		loop, err := os.Open(fmt.Sprintf("/dev/loop%d", n))
		require.NoError(t, err)
		t.Cleanup(func() { loop.Close() })
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), config); err == nil {
			return loop
		}
		require.ErrorIs(t, err, unix.EBUSY)
	}
	t.Fatal("no loop device stays free")
	return nil
}

func TestBootKernelPanic(t *testing.T) {
	c := testConfig(t)
	c.Initrd = filepath.Join(t.TempDir(), "initrd")
	require.NoError(t, os.WriteFile(c.Initrd, []byte("this is no archive"), 0o600))
	_, err := Boot(testContext(t), c)
	require.ErrorContains(t, err, "the guest's kernel crashed")
	require.ErrorContains(t, err, "Unable to mount root fs")
}

func TestBootQEMURefuses(t *testing.T) {
	c := testConfig(t)
	c.Kernel = filepath.Join(t.TempDir(), "kernel")
	require.NoError(t, os.WriteFile(c.Kernel, []byte("this is no kernel"), 0o600))
	_, err := Boot(testContext(t), c)
	require.ErrorContains(t, err, "QEMU ended at once")
	t.Log(err)
}

func TestBootIsCancelled(t *testing.T) {
	c := testConfig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err := Boot(ctx, c)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestBadConfig(t *testing.T) {
	good := Config{Name: "a", StateRoot: t.TempDir(), Kernel: "/dev/null", Initrd: "/dev/null", Accel: Accel{Name: TCG}}
	for name, break_ := range map[string]func(*Config){
		"name":   func(c *Config) { c.Name = "../x" },
		"cpus":   func(c *Config) { c.CPUs = 300 },
		"memory": func(c *Config) { c.MemoryMiB = 1 },
		"initrd": func(c *Config) { c.Initrd = "" },
		"disk":   func(c *Config) { c.Disks = []Disk{{}} },
		"serial": func(c *Config) { c.Disks = []Disk{{Path: "x", Serial: strings.Repeat("s", 21)}} },
		"slots":  func(c *Config) { c.HotplugSlots = 17 },
		"tag":    func(c *Config) { c.Shares = []Share{{Dir: "/"}} },
	} {
		c := good
		break_(&c)
		_, err := Boot(t.Context(), c)
		require.ErrorIs(t, err, sys.ErrInvalid, name)
	}
	missing := good
	missing.Kernel = filepath.Join(t.TempDir(), "none")
	_, err := Boot(t.Context(), missing)
	require.ErrorIs(t, err, os.ErrNotExist)
	missing = good
	missing.QEMU = "no-such-qemu"
	_, err = Boot(t.Context(), missing)
	require.ErrorIs(t, err, sys.ErrNotFound)
	left, err := os.ReadDir(good.StateRoot)
	require.NoError(t, err)
	require.Empty(t, left)
}

// ownerMain boots a machine, says so, and waits to be killed.
func ownerMain(name string) {
	vm, err := Boot(context.Background(), Config{
		Name: name, StateRoot: os.Getenv("STATE_ROOT"), Kernel: os.Getenv("KERNEL"), Initrd: os.Getenv("INITRD"),
		Accel: Accel{TCG, "a test"},
	})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(vm.Instance().QEMUPID)
	runtime.GC() // threads come and go; QEMU must outlive that
	_ = vm.Wait()
	os.Exit(0)
}

// TestOwnerIsKilled checks that QEMU ends with its owner, and that the next one
// to look clears away what the owner left.
func TestOwnerIsKilled(t *testing.T) {
	c := testConfig(t)
	owner := exec.Command("/proc/self/exe")
	owner.Env = append(os.Environ(), ownerEnv+"=t", "STATE_ROOT="+c.StateRoot, "KERNEL="+c.Kernel, "INITRD="+c.Initrd)
	out, err := owner.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, owner.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	require.NoError(t, err, line)
	pidfd, err := unix.PidfdOpen(pid, 0)
	require.NoError(t, err)

	in, err := Find(c.StateRoot, "t")
	require.NoError(t, err)
	require.NoError(t, in.Signal(unix.SIGKILL))
	require.NoError(t, awaitPidfd(testContext(t), pidfd))
	_ = owner.Wait()
	require.DirExists(t, in.Dir)
	_, err = Find(c.StateRoot, "t")
	require.ErrorIs(t, err, sys.ErrNotFound)
}
