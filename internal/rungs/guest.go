package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/microvm"
	"vminit/internal/rootimage"
	"vminit/internal/vmtest"
)

// onHost are the packages whose tests do not run inside a guest, and why. All
// others do.
var onHost = map[string]string{
	"vminit/api":                      "asks the go command",
	"vminit/cmd/vminitctl":            "is the host's side",
	"vminit/cmd/vminitd":              "is PID 1 of machines of its own",
	"vminit/internal/house":           "asks the go command",
	"vminit/kernel":                   "looks at files of the source",
	"vminit/internal/initramfs":       "is the host's side",
	"vminit/internal/microvm":         "is the host's side",
	"vminit/internal/rootimage":       "is the host's side",
	"vminit/internal/rungs":           "is what runs the tests",
	"vminit/internal/vhostvsock":      "is the host's side",
	"vminit/internal/vmtest":          "boots guests",
	"vminit/internal/vmtest/probe":    "builds itself",
	"vminit/internal/vmtest/testroot": "builds the probe",
}

// drivers are those of them that boot guests and belong to this rung.
var drivers = []string{"vminit/internal/microvm", "vminit/cmd/vminitd", "vminit/cmd/vminitctl", "vminit/internal/vmtest"}

// notOnVM are tests for which rung root is the right place: they need a kernel
// without LSMs, one without a cpuset controller (which on Linux 6.1 resets the
// affinity of a process that is born into a cgroup), GNU's tar, or extended
// attributes on tmpfs (Linux 6.6); the go command, its modules or the source; or
// they measure or use this machine itself.
var notOnVM = map[string]string{
	"vminit/tasksvc":        "^(TestLabelsWithoutLSM|TestExecCPUAffinity|TestTarAgainstGNU|TestTransferRoundTrip|TestCoverage)$",
	"vminit/nsexec/seccomp": "^(TestTablesAreCurrent|TestTablesAgainstHeaders)$",
	"vminit/cmd/vminitd":    "^TestNoWorkBeforeMain$",
	"vminit/cmd/vminitctl":  "^(TestScripts|TestCheckDaemon)$", // the first also runs in a guest, see TestScriptsInGuest
}

// tools are the host's programs that tests call and busybox does not have.
var tools = []string{"mkfs.ext4", "mkfs.erofs"}

// modules are what tests need of the guest's kernel beside the usual.
var modules = []string{"veth", "dummy", "bridge"}

// vm runs the tests of the guest's side in a guest, and those that drive
// guests. What cannot be run is a failure: this rung has everything.
func (l *ladder) vm(packages []pkg) error {
	fmt.Fprintln(l.out, "== vm")
	var inside, outside []pkg
	for _, p := range packages {
		if onHost[p.path] == "" {
			inside = append(inside, p)
		}
	}
	for _, path := range drivers {
		for _, p := range packages {
			if p.path == path {
				outside = append(outside, p)
			}
		}
	}
	defer vmtest.Clean()
	if len(inside) > 0 {
		if err := l.guest(inside); err != nil {
			l.fail("a guest to run tests in", err)
		}
	}
	return l.host("vm", outside, false, nil)
}

// guest boots a microVM with the test binaries on a disk and runs each in a
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
	g, err := vmtest.Start(func(c *microvm.Config) {
		c.MemoryMiB = 2048
		c.Disks = append(c.Disks, microvm.Disk{Path: image, ReadOnly: true, Serial: "tests"}, microvm.Disk{Path: scratch, Serial: "scratch"})
	}, modules...)
	if err != nil {
		return err
	}
	for _, p := range packages {
		err := l.twice(p.path, func(pattern string) (int, error) { return l.inContainer(g, p, pattern) })
		if err != nil {
			l.fail(p.path, fmt.Errorf("%w\nthe guest's console ends with:%s", err, g.VM.Console(40)))
		}
	}
	return g.Shutdown()
}

// fail counts something that is no single test.
func (l *ladder) fail(what string, err error) {
	l.total.failed++
	fmt.Fprintf(l.out, "--- FAIL: [vm] %s: %v\n", what, err)
}

// testDisk makes a root file system of busybox, the probe, tools, and of every
// package the test binary and the testdata, where the package is in the module.
func (l *ladder) testDisk(packages []pkg) (string, error) {
	dir := filepath.Join(l.dir, "disk")
	if err := vmtest.Root(dir); err != nil {
		return "", err
	}
	for _, t := range tools {
		if err := addTool(dir, t); err != nil {
			return "", err
		}
	}
	l.build(packages, false)
	for _, p := range packages {
		dst := filepath.Join(dir, home(p))
		if err := os.MkdirAll(dst, 0o755); err != nil {
			return "", err
		}
		if err := os.Rename(l.binary(p, false), filepath.Join(dst, "test")); err != nil {
			return "", err
		}
		data := filepath.Join(p.dir, "testdata")
		if _, err := os.Stat(data); err != nil {
			continue
		}
		if err := os.CopyFS(filepath.Join(dst, "testdata"), os.DirFS(data)); err != nil {
			return "", err
		}
	}
	image := filepath.Join(l.dir, "tests.erofs")
	_, err := rootimage.Build(context.Background(), image, dir, rootimage.Options{})
	return image, err
}

// home is where a package's tests are in the guest.
func home(p pkg) string { return "/src/" + p.path }

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
const guestTimeout = 8 * time.Minute

// inContainer runs the tests of one package, counts them as they come and returns
// their exit code.
func (l *ladder) inContainer(g *vmtest.Guest, p pkg, pattern string) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), guestTimeout+time.Minute)
	defer cancel()
	args := []string{"./test", "-test.v=test2json", "-test.timeout=" + guestTimeout.String()}
	args = append(args, selection("vm", p, pattern)...)
	config, err := json.Marshal(testSpec(p, args))
	if err != nil {
		return 0, err
	}
	uri, output, err := g.Stream(ctx) // one stream for both: order matters
	if err != nil {
		return 0, err
	}
	defer output.Close()
	context.AfterFunc(ctx, func() { output.Close() })
	r := &taskv3.CreateTaskRequest{ID: "tests" + vmtest.NewID(), Rootfs: vmtest.RootMountsOf("/dev/vdb"), Stdout: uri, Stderr: uri}
	if err := g.MakeBundle(ctx, r, config); err != nil {
		return 0, err
	}
	if _, err := g.Task.Create(ctx, r); err != nil {
		return 0, err
	}
	if _, err := g.Task.Start(ctx, &taskv3.StartRequest{ID: r.ID}); err != nil {
		return 0, err
	}
	began, before := time.Now(), l.total
	rest, err := l.count("vm", p.path, output)
	if err != nil {
		return 0, err
	}
	exit, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: r.ID})
	if err != nil {
		return 0, err
	}
	if _, err := g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: r.ID}); err != nil {
		return 0, err
	}
	if exit.ExitStatus != 0 && l.total.failed == before.failed {
		return 0, fmt.Errorf("exit code %d\n%s", exit.ExitStatus, rest)
	}
	l.summary(p.path, before, began)
	return int(exit.ExitStatus), nil
}

// testSpec is a container that may do anything to its guest.
func testSpec(p pkg, args []string) *specs.Spec {
	s := vmtest.Privileged(args...)
	s.Process.Cwd = home(p)
	s.Process.Env = append(s.Process.Env, "TMPDIR=/tmp", "VMINIT_RUNG=vm", "VMINIT_PROBE=/bin/probe", "VMINIT_SOAK="+os.Getenv("VMINIT_SOAK"))
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1777", "size=768m"}},
		specs.Mount{Destination: "/run", Type: "tmpfs", Source: "tmpfs"})
	return s
}
