package cgroup2

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// probeDevices makes a node for each argument KIND:MAJOR:MINOR:ACCESS and, if
// access is not only m, opens it. It prints what the kernel said.
func probeDevices(args []string) {
	dir, err := os.MkdirTemp("", "dev")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	for _, arg := range args {
		fmt.Println(arg, tryDevice(filepath.Join(dir, arg), arg))
	}
}

// tryDevice returns "EPERM" if the device may not be used and "ok" otherwise:
// a device that is allowed but does not exist is none of the filter's business.
func tryDevice(path, arg string) string {
	var kind string
	var major, minor uint32
	var access string
	if _, err := fmt.Sscanf(strings.ReplaceAll(arg, ":", " "), "%s %d %d %s", &kind, &major, &minor, &access); err != nil {
		return err.Error()
	}
	mode := uint32(unix.S_IFCHR | 0o600)
	if kind == "b" {
		mode = unix.S_IFBLK | 0o600
	}
	if err := unix.Mknod(path, mode, int(unix.Mkdev(major, minor))); err != nil {
		return "mknod " + unix.ErrnoName(err.(unix.Errno))
	}
	flags := map[string]int{"r": unix.O_RDONLY, "w": unix.O_WRONLY, "rw": unix.O_RDWR}
	if flag, ok := flags[access]; ok {
		fd, err := unix.Open(path, flag|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EPERM) {
			return "EPERM"
		}
		unix.Close(fd)
	}
	return "ok"
}

// requireMknod skips where devices cannot be used to begin with.
func requireMknod(t *testing.T) {
	t.Helper()
	if got := tryDevice(filepath.Join(t.TempDir(), "null"), "c:1:3:rw"); got != "ok" {
		if os.Getenv("VMINIT_RUNG") == "vm" {
			t.Fatalf("cannot make and open /dev/null in a temporary directory: %s", got)
		}
		t.Skipf("cannot make and open /dev/null in a temporary directory: %s", got)
	}
}

// useDevices runs the probe in c and returns its findings.
func useDevices(t *testing.T, c *Cgroup, args ...string) map[string]string {
	t.Helper()
	p := start(t, c, "device "+strings.Join(args, " "), "")
	got := map[string]string{}
	for range args {
		line, err := p.out.ReadString('\n')
		require.NoError(t, err)
		arg, verdict, _ := strings.Cut(strings.TrimSpace(line), " ")
		got[arg] = verdict
	}
	return got
}

func TestSetDevices(t *testing.T) {
	tree := newTree(t)
	requireMknod(t)
	c := newCgroup(t, tree, "c")

	// 1:11 is /dev/kmsg, 10:235 autofs, 1:4 port, 7:0 a loop device.
	all := []string{"c:1:3:rw", "c:1:5:r", "c:1:9:r", "c:5:2:rw", "c:1:11:r", "c:1:11:w", "c:1:4:m", "b:7:0:m", "b:7:0:r"}
	for arg, verdict := range useDevices(t, c, all...) {
		require.Equal(t, "ok", verdict, "%s without a filter", arg)
	}
	require.Empty(t, attachedPrograms(t, c))

	require.NoError(t, c.SetDevices(nil))
	want := map[string]string{
		"c:1:3:rw": "ok", "c:1:5:r": "ok", "c:1:9:r": "ok", "c:5:2:rw": "ok",
		"c:1:11:r": "EPERM", "c:1:11:w": "EPERM", "c:1:4:m": "ok", "b:7:0:m": "ok", "b:7:0:r": "EPERM",
	}
	require.Equal(t, want, useDevices(t, c, all...))
	first := attachedPrograms(t, c)
	require.Len(t, first, 1)

	require.NoError(t, c.SetDevices([]specs.LinuxDeviceCgroup{{Access: "rwm"}}))
	require.Equal(t, first, attachedPrograms(t, c), "the same rules are the same program")

	require.NoError(t, c.SetDevices([]specs.LinuxDeviceCgroup{{Access: "rwm"}, dev(true, "c", 1, 11, "r")}))
	want["c:1:11:r"] = "ok"
	require.Equal(t, want, useDevices(t, c, all...))
	second := attachedPrograms(t, c)
	require.Len(t, second, 1)
	require.NotEqual(t, first, second)

	require.ErrorIs(t, c.SetDevices([]specs.LinuxDeviceCgroup{{Type: "x"}}), sys.ErrInvalid)
	require.Equal(t, second, attachedPrograms(t, c), "a refused update changes nothing")

	require.NoError(t, c.SetDevices([]specs.LinuxDeviceCgroup{dev(true, "a", -1, -1, "rwm")}))
	require.Equal(t, "ok", useDevices(t, c, "b:7:0:r")["b:7:0:r"])
}

// A cgroup below can only be narrower.
func TestSetDevicesBelow(t *testing.T) {
	tree := newTree(t)
	requireMknod(t)
	c := newCgroup(t, tree, "c")
	require.NoError(t, c.SetDevices(nil))
	sub := filepath.Join(hostPath(t, c), "sub")
	require.NoError(t, os.Mkdir(sub, 0o755))
	fd, err := unix.Open(sub, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	inner := &Cgroup{tree: tree, path: c.Path() + "/sub"}
	inner.dir, err = newDir(fd, sub)
	require.NoError(t, err)
	defer inner.Close()
	require.NoError(t, inner.SetDevices([]specs.LinuxDeviceCgroup{dev(true, "a", -1, -1, "rwm")}))
	require.Equal(t, map[string]string{"c:1:11:r": "EPERM", "c:1:3:r": "ok"}, useDevices(t, inner, "c:1:11:r", "c:1:3:r"))
}

// Kernels before 5.6 cannot replace: both are attached, then the old one goes.
func TestSwapFilterWithoutReplace(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	var filters []*devFilter
	for _, rules := range [][]devRule{nil, defaultDevices[:1]} {
		f, err := tree.filters.get(encode(deviceProgram(rules)))
		require.NoError(t, err)
		defer tree.filters.put(f)
		filters = append(filters, f)
	}
	fd := int(c.Dir().Fd())
	require.NoError(t, attachDeviceProgram(fd, filters[0].fd, -1))
	first := attachedPrograms(t, c)
	require.NoError(t, attachDeviceProgram(fd, filters[1].fd, -1))
	require.Len(t, attachedPrograms(t, c), 2)
	require.NoError(t, detachDeviceProgram(fd, filters[0].fd))
	require.Len(t, attachedPrograms(t, c), 1)
	require.NotEqual(t, first, attachedPrograms(t, c))
}

// The most rules there may be, none alike, must pass the verifier.
func TestLargestDeviceProgram(t *testing.T) {
	tree := newTree(t)
	c := newCgroup(t, tree, "c")
	var list []specs.LinuxDeviceCgroup
	for i := range maxDeviceRules {
		kind := []string{"a", "b", "c"}[i%3]
		access := []string{"r", "w", "m", "rw", "rm", "wm", "rwm"}[i%7]
		list = append(list, dev(i%2 == 0, kind, int64(i%40), int64(i), access))
	}
	begin := time.Now()
	require.NoError(t, c.SetDevices(list))
	require.Less(t, time.Since(begin), 2*time.Second, "a hostile list must not keep the verifier busy")
}

func TestDeviceFiltersAreSharedAndReleased(t *testing.T) {
	tree := newTree(t)
	fds := countFDs(t)
	a, err := tree.Create("a")
	require.NoError(t, err)
	defer a.Delete(t.Context())
	b, err := tree.Create("b")
	require.NoError(t, err)
	defer b.Delete(t.Context())
	require.NoError(t, a.SetDevices(nil))
	require.NoError(t, b.SetDevices(nil))
	require.Equal(t, attachedPrograms(t, a), attachedPrograms(t, b))
	require.Equal(t, fds+3, countFDs(t), "two directories and one program")
	for i := range 3 * maxIdleFilters {
		require.NoError(t, a.SetDevices([]specs.LinuxDeviceCgroup{dev(true, "c", 10, int64(i), "r")}))
	}
	require.Equal(t, fds+2+2+maxIdleFilters, countFDs(t), "programs in use, and as many idle ones as are kept")
	tree.filters.close()
	require.Equal(t, fds+2+2, countFDs(t), "the idle ones are closed")
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
	require.Equal(t, fds, countFDs(t))
}

func BenchmarkLoadDeviceFilter(b *testing.B) {
	rules, err := deviceRules([]specs.LinuxDeviceCgroup{{Access: "rwm"}})
	if err != nil {
		b.Fatal(err)
	}
	code := encode(deviceProgram(rules))
	for b.Loop() {
		fd, err := loadDeviceProgram(code)
		if err != nil {
			b.Skip(err)
		}
		unix.Close(fd)
	}
}
