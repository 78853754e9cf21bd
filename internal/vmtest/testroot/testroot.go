// Package testroot makes the small root file system that tests and examples
// put into containers: busybox, the probe if it is given, users and groups,
// and empty directories for what is mounted later. It only writes below the
// directory it is told and needs no privileges.
package testroot

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"vminit/internal/sys"
)

// User is the id of the ordinary user and group "user" in /etc/passwd and
// /etc/group; "extra" is a group it also belongs to.
const (
	User  = 1000
	Extra = 1001
)

// Option changes what Build makes.
type Option func(*options)

type options struct{ probe, busybox string }

// WithProbe puts the host file p at /bin/probe.
func WithProbe(p string) Option { return func(o *options) { o.probe = p } }

// WithBusybox uses p in place of the host's busybox.
func WithBusybox(p string) Option { return func(o *options) { o.busybox = p } }

// directories and their permissions, parents first.
var directories = []struct {
	name string
	mode os.FileMode
}{
	{"", 0o755}, {"bin", 0o755}, {"dev", 0o755}, {"etc", 0o755}, {"home", 0o755}, {"mnt", 0o755},
	{"proc", 0o555}, {"root", 0o700}, {"run", 0o755}, {"sys", 0o555}, {"tmp", 0o777 | os.ModeSticky},
	{"usr", 0o755}, {"var", 0o755}, {"var/tmp", 0o777 | os.ModeSticky},
}

// links make every customary directory of programs the same one.
var links = map[string]string{"sbin": "bin", "usr/bin": "../bin", "usr/sbin": "../bin", "var/run": "../run"}

var files = map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n" +
		"user:x:1000:1000:user:/home:/bin/sh\n" +
		"nobody:x:65534:65534:nobody:/:/bin/false\n",
	"etc/group": "root:x:0:\n" +
		"tty:x:5:\n" +
		"user:x:1000:\n" +
		"extra:x:1001:user\n" +
		"nogroup:x:65534:\n",
	"etc/hostname":    "testroot\n",
	"etc/hosts":       "127.0.0.1 localhost\n::1 localhost\n",
	"etc/resolv.conf": "",
}

// Build makes the root file system in dir, which must be empty or not exist.
// On error dir is left with whatever was made.
func Build(dir string, opts ...Option) error {
	o := options{}
	for _, f := range opts {
		f(&o)
	}
	if o.busybox == "" {
		p, err := findBusybox()
		if err != nil {
			return err
		}
		o.busybox = p
	}
	if old, err := os.ReadDir(dir); err == nil && len(old) > 0 {
		return sys.Mark(sys.ErrExists, fmt.Errorf("root file system %s: not empty", dir))
	}
	for _, d := range directories {
		p := filepath.Join(dir, d.name)
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(p, d.mode); err != nil { // whatever the umask
			return err
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for name, text := range files {
		if err := writeFile(filepath.Join(dir, name), strings.NewReader(text), 0o644); err != nil {
			return err
		}
	}
	if err := addBusybox(dir, o.busybox); err != nil {
		return err
	}
	if o.probe == "" {
		return nil
	}
	return copyFile(filepath.Join(dir, "bin/probe"), o.probe)
}

// addBusybox copies busybox and links its applets, asking it for their names.
func addBusybox(dir, busybox string) error {
	if err := checkStatic(busybox); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(dir, "bin/busybox"), busybox); err != nil {
		return err
	}
	out, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("%s --list: %w", busybox, err)
	}
	for _, applet := range strings.Fields(string(out)) {
		if applet == "busybox" || strings.ContainsRune(applet, '/') {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			return err
		}
	}
	return nil
}

// findBusybox looks where distributions put it.
func findBusybox() (string, error) {
	var problems []error
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox", "/bin/busybox.static"} {
		err := checkStatic(p)
		if err == nil {
			return p, nil
		}
		problems = append(problems, err)
	}
	return "", sys.Mark(sys.ErrNotFound,
		fmt.Errorf("no static busybox (Debian: apt-get install busybox-static): %w", errors.Join(problems...)))
}

// checkStatic refuses a program that needs files the root does not have.
func checkStatic(p string) error {
	f, err := elf.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return sys.Invalidf("%s: dynamically linked, a static one is needed", p)
	}
	return nil
}

// copyFile copies a program.
func copyFile(dst, src string) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeFile(dst, f, 0o755)
}

func writeFile(dst string, from io.Reader, mode os.FileMode) error {
	f, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Chmod(mode), f.Close())
}
