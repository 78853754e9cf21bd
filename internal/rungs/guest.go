package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/microvm"
	"vminit/internal/rootimage"
	"vminit/internal/vmtest"
)

// inGuest are the packages whose tests run inside a microVM: those the daemon
// is made of. The others are about the host's side, or need a Go toolchain.
var inGuest = []string{
	"vminit/cgroup2", "vminit/nsexec", "vminit/nsexec/seccomp", "vminit/rootfs", "vminit/tasksvc", "vminit/vsockstream",
	"vminit/cmd/vminitd/boot", "vminit/cmd/vminitd/power",
}

// notInGuest are tests for which rung root is the right place: they need
// mkfs.ext4 (loop devices, id mappings), a kernel without LSMs, one without a
// cpuset controller (which on Linux 6.1 resets the affinity of a process that
// is born into a cgroup), a processor that is not emulated (huge configs), or
// expect the mounts of a host. TestLongOptions fails on Linux 6.1 and wants a
// look (docs/STATUS.md).
var notInGuest = map[string]string{
	"vminit/rootfs":  "^(TestAssembleLoop.*|TestIDMap.*|TestHugeConfigs|TestCgroupMount|TestLongOptions)$",
	"vminit/tasksvc": "^(TestLabelsWithoutLSM|TestExecCPUAffinity)$",
}

// driveGuests are the packages that boot microVMs and look at them from the host.
var driveGuests = []string{"vminit/internal/vmtest", "vminit/cmd/vminitctl"}

// needToolchain are the packages whose tests build programs or run the go
// command, which an ordinary user of a root-owned checkout cannot; rung root
// runs all of them.
var needToolchain = []string{
	"vminit/cmd/vminitctl", "vminit/cmd/vminitd", "vminit/internal/house", "vminit/internal/initramfs", "vminit/internal/microvm",
	"vminit/internal/vhostvsock", "vminit/internal/vmtest", "vminit/internal/vmtest/probe", "vminit/internal/vmtest/testroot",
}

// vm runs the tests of the guest's side in a guest, and those that drive guests.
func (l *ladder) vm(packages []pkg) error {
	fmt.Fprintln(l.out, "== vm")
	inside := slices.DeleteFunc(slices.Clone(packages), func(p pkg) bool { return !slices.Contains(inGuest, p.path) })
	if len(inside) > 0 {
		if err := l.guest(inside); err != nil {
			return err
		}
	}
	drivers := slices.DeleteFunc(slices.Clone(packages), func(p pkg) bool { return !slices.Contains(driveGuests, p.path) })
	return l.host("vm", drivers, false, nil)
}

// guest puts the test binaries on a disk of a microVM and runs each in a
// container that has nothing of its own but its mounts.
func (l *ladder) guest(packages []pkg) error {
	image, err := l.testDisk(packages)
	if err != nil {
		return err
	}
	scratch, err := scratchDisk(l.dir)
	if err != nil {
		return err
	}
	defer vmtest.Clean()
	g, err := vmtest.Start(func(c *microvm.Config) {
		c.MemoryMiB = 2048
		c.Disks = append(c.Disks, microvm.Disk{Path: image, ReadOnly: true, Serial: "tests"}, microvm.Disk{Path: scratch, Serial: "scratch"})
	})
	if err != nil {
		return err
	}
	for _, p := range packages {
		if err := l.twice(p.path, func() error { return l.inContainer(g, p) }); err != nil {
			l.total.failed++
			fmt.Fprintf(l.out, "--- FAIL: [vm] %s: %v\nthe guest's console ends with:%s\n", p.path, err, g.VM.Console(40))
		}
	}
	return g.Shutdown()
}

// testDisk makes an image with the test binaries and the packages' testdata.
func (l *ladder) testDisk(packages []pkg) (string, error) {
	dir := filepath.Join(l.dir, "disk")
	for _, p := range packages {
		binary, err := l.build(p, false)
		if err != nil {
			return "", err
		}
		dst := filepath.Join(dir, p.path)
		if err := os.MkdirAll(dst, 0o755); err != nil {
			return "", err
		}
		if err := os.Rename(binary, filepath.Join(dst, "test")); err != nil {
			return "", err
		}
		data := filepath.Join(p.dir, "testdata")
		if _, err := os.Stat(data); err == nil {
			if err := os.CopyFS(filepath.Join(dst, "testdata"), os.DirFS(data)); err != nil {
				return "", err
			}
		}
	}
	image := filepath.Join(l.dir, "tests.erofs")
	_, err := rootimage.Build(context.Background(), image, dir, rootimage.Options{})
	return image, err
}

// scratchDisk is a disk for tests that need one, to do with as they like.
func scratchDisk(dir string) (string, error) {
	name := filepath.Join(dir, "scratch.img")
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return name, f.Truncate(64 << 20)
}

// guestTimeout ends a package's tests that hang in the guest.
const guestTimeout = 5 * time.Minute

// inContainer runs the tests of one package and counts them.
func (l *ladder) inContainer(g *vmtest.Guest, p pkg) error {
	ctx, cancel := context.WithTimeout(context.Background(), guestTimeout+time.Minute)
	defer cancel()
	args := []string{"/tests/" + p.path + "/test", "-test.v=test2json", "-test.timeout=" + guestTimeout.String()}
	if l.pattern != "" {
		args = append(args, "-test.run="+l.pattern)
	}
	if skip := notInGuest[p.path]; skip != "" {
		args = append(args, "-test.skip="+skip)
	}
	c, err := g.Create(ctx, "tests"+vmtest.NewID(), privileged("/tests/"+p.path, args), false)
	if err != nil {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	began, before := time.Now(), l.total
	result, err := c.Finish(ctx)
	if err != nil {
		return err
	}
	rest, err := l.count("vm", p.path, strings.NewReader(result.Stdout+result.Stderr))
	if err != nil {
		return err
	}
	if result.Code != 0 && l.total.failed == before.failed {
		return fmt.Errorf("exit code %d\n%s", result.Code, rest)
	}
	l.summary(p.path, before, began)
	return nil
}

// privileged is a container that may do anything to its guest.
func privileged(cwd string, args []string) *specs.Spec {
	s := vmtest.Spec(args...)
	all := capabilities()
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all, Inheritable: all}
	s.Process.NoNewPrivileges, s.Process.Rlimits = false, nil
	s.Process.Cwd = cwd
	s.Process.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TMPDIR=/tmp", "VMINIT_RUNG=vm", "VMINIT_PROBE=/bin/probe"}
	s.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind"}},
		{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind"}},
		{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1777", "size=768m"}},
		{Destination: "/run", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/tests", Type: "erofs", Source: "/dev/vdb", Options: []string{"ro"}},
	}
	s.Hostname = ""
	s.Linux = &specs.Linux{
		Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}},
		Resources:  &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}},
	}
	return s
}

func capabilities() []string {
	out, err := exec.Command("setpriv", "--list-caps").Output()
	if err != nil {
		return nil
	}
	var all []string
	for name := range strings.FieldsSeq(string(out)) {
		all = append(all, "CAP_"+strings.ToUpper(name))
	}
	return all
}
