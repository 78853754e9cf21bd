package vmtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"vminit/internal/initramfs"
	"vminit/internal/rootimage"
	"vminit/internal/vmtest/testroot"
)

// built are the files guests are made of.
type built struct{ daemon, kernel, release, root, probe string }

// scratch is this program's directory.
var scratch = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "vmtest-")
	if err != nil {
		panic(err)
	}
	return dir
})

// artifacts builds the daemon and a root file system, once.
var artifacts = sync.OnceValues(func() (b built, err error) {
	dir := scratch()
	b.daemon, b.root = filepath.Join(dir, "vminitd"), filepath.Join(dir, "root.erofs")
	build := exec.Command("go", "build", "-trimpath", "-tags", "no_grpc", "-gcflags=google.golang.org/...=-l", "-gcflags=github.com/...=-l", "-ldflags", "-s -w -X main.version=test", "-o", b.daemon, "vminit/cmd/vminitd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return b, fmt.Errorf("build vminitd: %w: %s", err, out)
	}
	if b.kernel, b.release, err = initramfs.FindKernel(); err != nil {
		return b, err
	}
	if b.probe, err = testroot.Probe(dir); err != nil {
		return b, err
	}
	root := filepath.Join(dir, "root")
	if err := testroot.Build(root, testroot.WithProbe(b.probe)); err != nil {
		return b, err
	}
	_, err = rootimage.Build(context.Background(), b.root, root, rootimage.Options{})
	return b, err
})

// image builds a guest image that loads the given modules, too, unless the kernel
// has none.
func (b built) image(modules []string) (name string, err error) {
	f, err := os.Create(filepath.Join(scratch(), "initrd-"+strings.Join(modules, "-")))
	if err != nil {
		return "", err
	}
	defer f.Close()
	c := initramfs.Usual(b.daemon, b.release)
	c.StripSignatures = true
	if c.KernelRelease != "" {
		c.LateModules = append(c.LateModules, modules...)
	}
	_, err = initramfs.Build(f, c)
	return f.Name(), err
}

// Root makes in dir the root file system that containers of tests have.
func Root(dir string) error {
	b, err := artifacts()
	if err != nil {
		return err
	}
	return testroot.Build(dir, testroot.WithProbe(b.probe))
}
