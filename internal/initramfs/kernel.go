package initramfs

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"vminit/internal/sys"
)

// KernelEnv names in the environment an image to boot guests with instead of one
// that is installed: the project's small kernel for example (make kernel).
const KernelEnv = "VMINIT_KERNEL"

// FindKernel finds a kernel to boot a guest with: its image, and the release its
// modules are installed under, empty if there are none. It is the one that
// [KernelEnv] names, or an installed one with modules: Debian's cloud kernels are
// preferred, they are small and boot fastest; then newer ones. The image and
// modules.dep must be readable.
func FindKernel() (image, release string, err error) {
	if image = os.Getenv(KernelEnv); image == "" {
		return findKernel("/boot", DefaultModulesDir, runtime.GOARCH)
	}
	if release, err = KernelRelease(image); err != nil {
		return "", "", fmt.Errorf("%s: %w", KernelEnv, err)
	}
	if !HasModules(release) {
		release = ""
	}
	return image, release, nil
}

// HasModules tells whether modules of a release are installed. A kernel that has
// none is taken to have everything built in.
func HasModules(release string) bool {
	if release == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(DefaultModulesDir, release, "modules.dep"))
	return err == nil
}

// CheckRelease tells whether a release that somebody names is one of a kernel
// installed here: with modules, or at least a list of those it has built in. That
// a kernel needs no modules is only taken for granted where there is its image;
// a name alone may be misspelt.
func CheckRelease(release string) error { return checkRelease(DefaultModulesDir, release) }

func checkRelease(dir, release string) error {
	if err := checkReleaseName(release); err != nil {
		return err
	}
	for _, name := range []string{"modules.dep", "modules.builtin"} {
		if _, err := os.Stat(filepath.Join(dir, release, name)); err == nil {
			return nil
		}
	}
	return sys.Mark(sys.ErrNotFound, fmt.Errorf(
		"kernel %s has neither modules nor a list of built-in ones in %s: install its modules, or, if it has everything built in, name its image with --kernel instead",
		release, filepath.Join(dir, release)))
}

// KernelRelease reads a bzImage's release from its header (the kernel's
// Documentation/x86/boot.rst: kernel_version at 0x20e). For any other image it
// is the part of the name after "vmlinu?-", or nothing.
func KernelRelease(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("kernel: %w", err)
	}
	defer f.Close()
	head := make([]byte, 64<<10)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", fmt.Errorf("kernel %s: %w", path, err)
	}
	if release := bzImageRelease(head[:n]); release != "" {
		return release, nil
	}
	name := filepath.Base(path)
	for _, prefix := range []string{"vmlinuz-", "vmlinux-"} {
		if release, ok := strings.CutPrefix(name, prefix); ok {
			return release, nil
		}
	}
	return "", nil
}

// bzImageRelease is the release in the first bytes of a bzImage, "" if it is
// none.
func bzImageRelease(head []byte) string {
	if len(head) < 0x210 || string(head[0x202:0x206]) != "HdrS" {
		return ""
	}
	offset := int(binary.LittleEndian.Uint16(head[0x20e:])) + 0x200
	if offset == 0x200 || offset >= len(head) {
		return ""
	}
	text, _, _ := strings.Cut(string(head[offset:]), "\x00")
	release, _, _ := strings.Cut(text, " ")
	if len(release) > 64 || !filepath.IsLocal(release) || strings.ContainsRune(release, '/') {
		return ""
	}
	return release
}

func findKernel(boot, modules, arch string) (image, release string, err error) {
	var candidates []string // releases
	images := make(map[string]string)
	add := func(release, image string) {
		if _, ok := images[release]; !ok {
			images[release] = image
			candidates = append(candidates, release)
		}
	}
	// Glob fails only on a malformed pattern. /boot is where Debian, Ubuntu
	// and Fedora put images; Fedora and Arch have them beside the modules.
	inBoot, _ := filepath.Glob(filepath.Join(boot, "vmlinuz-*"))
	for _, p := range inBoot {
		add(strings.TrimPrefix(filepath.Base(p), "vmlinuz-"), p)
	}
	beside, _ := filepath.Glob(filepath.Join(modules, "*", "vmlinuz"))
	for _, p := range beside {
		add(filepath.Base(filepath.Dir(p)), p)
	}

	cloud := "-cloud-" + arch
	slices.SortFunc(candidates, func(a, b string) int {
		ca, cb := strings.HasSuffix(a, cloud), strings.HasSuffix(b, cloud)
		if ca != cb {
			if ca {
				return -1
			}
			return 1
		}
		return -compareReleases(a, b)
	})
	var problems []error
	for _, rel := range candidates {
		err := cmp.Or(readable(images[rel]), readable(filepath.Join(modules, rel, "modules.dep")))
		if err == nil {
			return images[rel], rel, nil
		}
		problems = append(problems, err)
	}
	hint := fmt.Sprintf("install one (Debian: apt-get install linux-image%s) or name one with --kernel", cloud)
	if len(problems) > 0 {
		return "", "", sys.Mark(sys.ErrNotFound,
			fmt.Errorf("no usable guest kernel: %s: %w", hint, errors.Join(problems...)))
	}
	return "", "", sys.Mark(sys.ErrNotFound, fmt.Errorf("no guest kernel in %s: %s", boot, hint))
}

// readable tells why the file cannot be read (Ubuntu's images are root's own).
func readable(p string) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	return f.Close()
}

// compareReleases orders kernel releases: numbers by value, the rest as text.
func compareReleases(a, b string) int {
	for a != "" && b != "" {
		na, ra := leadingNumber(a)
		nb, rb := leadingNumber(b)
		if na >= 0 && nb >= 0 {
			if c := cmp.Compare(na, nb); c != 0 {
				return c
			}
			a, b = ra, rb
			continue
		}
		if c := cmp.Compare(a[0], b[0]); c != 0 {
			return c
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

// leadingNumber splits off the number s starts with, -1 if none.
func leadingNumber(s string) (int, string) {
	n := 0
	for n < len(s) && n < 9 && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	v, err := strconv.Atoi(s[:n])
	if err != nil {
		return -1, s
	}
	return v, s[n:]
}
