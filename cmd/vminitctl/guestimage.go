package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/initramfs"
	"vminit/internal/microvm"
	"vminit/internal/sys"
)

// guestOptions say what a guest is made of. Empty means the default.
type guestOptions struct {
	kernel  string // image; the newest installed one
	initrd  string // guest image; one made of the following, kept in the cache
	vminitd string // PID 1; the one beside this program
	machine string // its kind, as microvm.Config has it

	// needs are the modules that the guest image must have beside those it
	// cannot serve without. Nil means all that containers may want.
	needs []string
}

// guestFiles are what a guest boots from.
type guestFiles struct {
	Kernel  string
	Release string // of the kernel; "" if it cannot be told
	Initrd  string
}

// files finds the kernel and finds or makes the guest image.
func (o guestOptions) files() (guestFiles, error) {
	var g guestFiles
	var err error
	if o.kernel == "" {
		if g.Kernel, g.Release, err = initramfs.FindKernel(); err != nil {
			return g, err
		}
	} else {
		g.Kernel = o.kernel
		if g.Release, err = initramfs.KernelRelease(o.kernel); err != nil {
			return g, err
		}
	}
	store, err := openCache()
	if err != nil {
		return g, err
	}
	if g.Kernel, err = unpackedKernel(store, g.Kernel); err != nil {
		return g, err
	}
	if o.initrd != "" {
		g.Initrd = o.initrd
		return g, nil
	}
	c, err := o.initramfsConfig(g.Release)
	if err != nil {
		return g, err
	}
	if o.machine != microvm.MachineMMIO {
		c.Modules = slices.DeleteFunc(c.Modules, isMMIO)
	}
	key, err := imageKey(c)
	if err != nil {
		return g, err
	}
	g.Initrd, err = store.get("initramfs-"+key, func(f *os.File) error {
		_, err := initramfs.Build(f, c)
		return err
	})
	return g, err
}

// isMMIO tells the driver of a bus that only one kind of machine has.
func isMMIO(module string) bool { return strings.HasPrefix(module, "virtio_mmio") }

// unpackedKernel returns the ELF image inside a bzImage, which boots faster, from
// the cache; or the image as it is if it cannot be unpacked.
func unpackedKernel(store cache, path string) (string, error) {
	if runtime.GOARCH != "amd64" {
		return path, nil
	}
	key, err := fileKey(path)
	if err != nil {
		return "", fmt.Errorf("kernel: %w", err)
	}
	unpacked, err := store.get("vmlinux-"+key, func(f *os.File) error {
		image, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return microvm.UnpackKernel(f, image)
	})
	if errors.Is(err, sys.ErrUnsupported) {
		return path, nil
	}
	return unpacked, err
}

// fileKey names a file by what changes when its contents do: hashing a kernel
// every time would take longer than finding it.
func fileKey(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: path, Err: err}
	}
	h := sha256.New()
	fmt.Fprintf(h, "%q %d %d %d %d %d %d", path, st.Dev, st.Ino, st.Size, st.Mtim.Nano(), st.Ctim.Nano(), st.Mode)
	return hex.EncodeToString(h.Sum(nil)[:12]), nil
}

// initramfsConfig is the image for a kernel: with the modules it needs, or
// without if it has none installed. It is not compressed: it is used here.
func (o guestOptions) initramfsConfig(release string) (initramfs.Config, error) {
	init := o.vminitd
	if init == "" {
		var err error
		if init, err = findDaemon(); err != nil {
			return initramfs.Config{}, err
		}
	}
	c := initramfs.Usual(init, release)
	if c.KernelRelease == "" {
		return c, nil
	}
	if o.needs != nil {
		c.LateModules, c.RestModules = o.needs, nil
	}
	c.StripSignatures = !enforcesSignatures(release)
	return c, nil
}

// enforcesSignatures reports whether a kernel may refuse modules without
// signatures. The image is ours and the guest trusts it, so checking them would
// only cost time.
func enforcesSignatures(release string) bool {
	config, err := os.ReadFile("/boot/config-" + release)
	if err != nil {
		return true // who knows
	}
	return bytes.Contains(config, []byte("\nCONFIG_MODULE_SIG_FORCE=y\n"))
}

// findDaemon returns the vminitd beside this program, or that in PATH.
func findDaemon() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find vminitd: %w", err)
	}
	path := filepath.Join(filepath.Dir(self), "vminitd")
	if _, err := os.Stat(path); err != nil {
		if inPath, lookErr := exec.LookPath("vminitd"); lookErr == nil {
			return filepath.Abs(inPath)
		}
		return "", sys.Mark(sys.ErrNotFound, fmt.Errorf("the daemon: %w, and none in PATH (run make build, or name one with --vminitd where there is that flag)", err))
	}
	return path, nil
}

// imageKey names an image by the contents of all that goes into it.
func imageKey(c initramfs.Config) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "vminit initramfs 3\n%q %q %t\n", c.KernelRelease, c.Compression, c.StripSignatures)
	if err := hashFile(h, c.Init); err != nil {
		return "", err
	}
	for _, names := range [][]string{c.Modules, c.LateModules, c.RestModules} {
		if c.KernelRelease == "" {
			break
		}
		files, err := initramfs.ResolveModules(initramfs.DefaultModulesDir, c.KernelRelease, names)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%d modules\n", len(files))
		for _, f := range files {
			fmt.Fprintf(h, "%q\n", f)
			if err := hashFile(h, filepath.Join(initramfs.DefaultModulesDir, c.KernelRelease, f)); err != nil {
				return "", err
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:12]), nil
}

// hashFile adds a file's length and contents.
func hashFile(h hash.Hash, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintf(h, "%d\n", fi.Size())
	_, err = io.Copy(h, f)
	return err
}
