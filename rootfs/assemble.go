package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Mount is a rootfs mount of the Task API's Create (containerd.types.Mount).
type Mount struct {
	Type, Source, Target string
	Options              []string
}

// Assemble mounts a container's root file system in the calling mount
// namespace: all mounts but the last at <bundle>/mounts/<i>, the last at
// <bundle>/rootfs (design: WIRE.md section 4). The function returned undoes it
// in reverse order; it may be called again when it has failed. If Assemble
// fails nothing stays mounted.
func Assemble(ctx context.Context, bundle string, mounts []Mount) (func() error, error) {
	a := &assembly{bundle: bundle}
	for i := range mounts {
		target := filepath.Join(bundle, "mounts", strconv.Itoa(i))
		if i == len(mounts)-1 {
			target = filepath.Join(bundle, "rootfs")
		}
		if len(mounts) == 1 && mounts[0].Type == "bind" && filepath.Clean(mounts[0].Source) == target {
			break // it is there already
		}
		if err := a.mount(ctx, mounts[i], target); err != nil {
			return nil, errors.Join(fmt.Errorf("rootfs mount %d: %w", i, err), a.undo())
		}
	}
	return a.undo, nil
}

// assembly is what has been done so far.
type assembly struct {
	bundle string
	done   []doneMount
	dirs   []string // directories we made, for removal
}

// doneMount is what templates of later mounts refer to.
type doneMount struct{ source, target string }

func (a *assembly) mount(ctx context.Context, m Mount, target string) error {
	fstype := m.Type
	if t, ok := strings.CutPrefix(fstype, "format/"); ok {
		fstype = t
		if err := a.expand(&m); err != nil {
			return err
		}
	}
	if t, ok := strings.CutPrefix(fstype, "mkdir/"); ok {
		fstype = t
		if err := a.makeDirs(&m); err != nil {
			return err
		}
	}
	if err := a.makeTarget(target); err != nil {
		return err
	}
	flags, propagation, data, err := mountFlags(m.Options)
	if err != nil {
		return err
	}
	if fstype == "bind" {
		flags |= unix.MS_BIND
	}
	if strings.HasPrefix(m.Source, "/dev/") && flags&unix.MS_BIND == 0 {
		if err := waitForDevice(ctx, m.Source); err != nil {
			return err
		}
	}
	if err := mount(m.Source, target, fstype, flags, propagation, data); err != nil {
		return err
	}
	a.done = append(a.done, doneMount{m.Source, target})
	return nil
}

// mount is mount(2), which for binds ignores most flags and for propagation
// wants a call of its own.
func mount(source, target, fstype string, flags, propagation uintptr, data string) error {
	describe := func(err error) error {
		return fmt.Errorf("mount %s %s on %s: %w", fstype, source, target, err)
	}
	if len(data) >= os.Getpagesize() {
		return describe(sys.Invalidf("the options are %d bytes long, the kernel takes less than a page", len(data)))
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		if err == unix.ENODEV {
			return describe(sys.Unsupportedf("the kernel has no file system %q (is its module loaded?): %w", fstype, err))
		}
		return describe(err)
	}
	var err error
	if rest := flags &^ (unix.MS_BIND | unix.MS_REC); flags&unix.MS_BIND != 0 && rest != 0 {
		err = unix.Mount("", target, "", flags&^unix.MS_REC|unix.MS_REMOUNT, "")
	}
	if err == nil && propagation != 0 {
		err = unix.Mount("", target, "", propagation, "")
	}
	if err != nil {
		return errors.Join(describe(err), unix.Unmount(target, unix.MNT_DETACH))
	}
	return nil
}

// makeTarget makes the directories of a mount point inside the bundle.
func (a *assembly) makeTarget(target string) error {
	for _, dir := range []string{filepath.Dir(target), target} {
		switch err := os.Mkdir(dir, 0o711); {
		case err == nil:
			a.dirs = append(a.dirs, dir)
		case !errors.Is(err, os.ErrExist):
			return err
		}
	}
	return nil
}

// undo unmounts and removes in reverse. What it could not take back stays
// listed for the next call.
func (a *assembly) undo() error {
	for len(a.done) > 0 {
		last := len(a.done) - 1
		if err := unix.Unmount(a.done[last].target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount %s: %w", a.done[last].target, err)
		}
		a.done = a.done[:last]
	}
	for len(a.dirs) > 0 {
		last := len(a.dirs) - 1
		if err := os.Remove(a.dirs[last]); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
		a.dirs = a.dirs[:last]
	}
	return nil
}

// makeDirs consumes the X-containerd.mkdir.path options of a mkdir/TYPE mount:
// PATH[:mode[:uid[:gid]]], inside <bundle>/mounts.
func (a *assembly) makeDirs(m *Mount) error {
	const prefix = "X-containerd.mkdir.path="
	rest := make([]string, 0, len(m.Options))
	for _, o := range m.Options {
		spec, ok := strings.CutPrefix(o, prefix)
		if !ok {
			rest = append(rest, o)
			continue
		}
		if err := a.makeDir(spec); err != nil {
			return fmt.Errorf("option %s: %w", o, err)
		}
	}
	m.Options = rest
	return nil
}

func (a *assembly) makeDir(spec string) error {
	f := strings.Split(spec, ":")
	if len(f) > 4 {
		return sys.Invalidf("more than path, mode, uid and gid")
	}
	num := [4]uint64{1: 0o700}
	for i := 1; i < len(f); i++ {
		base := 10
		if i == 1 {
			base = 8
		}
		n, err := strconv.ParseUint(f[i], base, 31)
		if err != nil || i == 1 && n > 0o7777 {
			return sys.Invalidf("%q is not a number of its kind", f[i])
		}
		num[i] = n
	}
	base := filepath.Join(a.bundle, "mounts")
	rel, err := filepath.Rel(base, filepath.Clean(f[0]))
	if err != nil || !filepath.IsLocal(rel) || rel == "." {
		return sys.Invalidf("%s is not inside %s", f[0], base)
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.MkdirAll(rel, 0o755); err != nil {
		return err
	}
	if err := root.Chmod(rel, os.FileMode(num[1]&0o777)|stickyBits(num[1])); err != nil {
		return err
	}
	return root.Lchown(rel, int(num[2]), int(num[3]))
}

// stickyBits translates the upper mode bits to os.FileMode's.
func stickyBits(mode uint64) (m os.FileMode) {
	for bit, f := range map[uint64]os.FileMode{0o4000: os.ModeSetuid, 0o2000: os.ModeSetgid, 0o1000: os.ModeSticky} {
		if mode&bit != 0 {
			m |= f
		}
	}
	return m
}

var msFlags = map[string]struct {
	flag  uintptr
	clear bool
}{
	"ro": {unix.MS_RDONLY, false}, "rw": {unix.MS_RDONLY, true}, "nosuid": {unix.MS_NOSUID, false}, "suid": {unix.MS_NOSUID, true},
	"nodev": {unix.MS_NODEV, false}, "dev": {unix.MS_NODEV, true}, "noexec": {unix.MS_NOEXEC, false}, "exec": {unix.MS_NOEXEC, true},
	"sync": {unix.MS_SYNCHRONOUS, false}, "async": {unix.MS_SYNCHRONOUS, true}, "dirsync": {unix.MS_DIRSYNC, false},
	"noatime": {unix.MS_NOATIME, false}, "atime": {unix.MS_NOATIME, true}, "nodiratime": {unix.MS_NODIRATIME, false}, "diratime": {unix.MS_NODIRATIME, true},
	"relatime": {unix.MS_RELATIME, false}, "norelatime": {unix.MS_RELATIME, true}, "strictatime": {unix.MS_STRICTATIME, false}, "lazytime": {unix.MS_LAZYTIME, false},
	"bind": {unix.MS_BIND, false}, "rbind": {unix.MS_BIND | unix.MS_REC, false}, "remount": {unix.MS_REMOUNT, false},
}

// mountFlags sorts mount(8) options into flags, propagation and data.
func mountFlags(options []string) (flags, propagation uintptr, data string, err error) {
	var rest []string
	for _, o := range options {
		if f, ok := msFlags[o]; ok {
			flags &^= f.flag
			if !f.clear {
				flags |= f.flag
			}
			continue
		}
		if p, ok := propagationOptions[o]; ok {
			propagation = uintptr(p)
			continue
		}
		switch {
		case slices.Contains(ignoredOptions, o):
		case o == "loop":
			return 0, 0, "", sys.Unsupportedf("option loop is not supported yet")
		case o == "" || strings.ContainsAny(o, "\x00\n"):
			return 0, 0, "", sys.Invalidf("option %q", o)
		default:
			rest = append(rest, o)
		}
	}
	return flags, propagation, strings.Join(rest, ","), nil
}
