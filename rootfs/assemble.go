package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

// Mount is a rootfs mount of the Task API's Create (containerd.types.Mount).
type Mount struct {
	Type, Source, Target string
	Options              []string
}

// Assemble mounts a container's root file system in the calling mount
// namespace: all mounts but the last at <bundle>/mounts/<i>, the last at
// <bundle>/rootfs (docs/wire.md, section 4). The function returned undoes it
// in reverse order; it may be called again when it has failed. If Assemble
// fails nothing stays mounted. The Launcher is for the user namespaces of
// id-mapped layers.
func Assemble(ctx context.Context, l *nsexec.Launcher, bundle string, mounts []Mount) (func() error, error) {
	a := &assembly{launcher: l, bundle: bundle}
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
	launcher *nsexec.Launcher
	bundle   string
	done     []doneMount
	dirs     []string // directories we made, for removal
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
	o, err := parseMount(fstype, m)
	if err != nil {
		return err
	}
	if err := a.makeTarget(target); err != nil {
		return err
	}
	release, err := o.devices(ctx)
	if err != nil {
		return err
	}
	o.place = a.place
	err = o.mountOn(a.launcher, target)
	release() // the mount holds what it uses
	if err != nil {
		return err
	}
	a.done = append(a.done, doneMount{m.Source, target})
	return nil
}

// place opens a mount point below the bundle, without following links there: its
// contents are hostile, only the bundle's own path is the host's. Then it calls f
// with a path of the mount point that cannot be redirected, whatever becomes of
// target: it goes through the open descriptor and is valid until f returns.
func (a *assembly) place(target string, f func(target string) error) error {
	return a.inBundle(target, func(bundle int, rel string) error {
		fd, err := openat2(bundle, rel, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			return fmt.Errorf("open mount point %s: %w", target, err)
		}
		defer unix.Close(fd)
		return f("/proc/self/fd/" + strconv.Itoa(fd))
	})
}

// inBundle opens the bundle for work on what is below it.
func (a *assembly) inBundle(target string, f func(bundle int, rel string) error) error {
	rel, err := filepath.Rel(a.bundle, target)
	if err != nil {
		return err
	}
	bundle, err := unix.Open(a.bundle, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open bundle %s: %w", a.bundle, err)
	}
	defer unix.Close(bundle)
	return f(bundle, rel)
}

// makeTarget makes the directories of a mount point inside the bundle.
func (a *assembly) makeTarget(target string) error {
	return a.inBundle(target, func(bundle int, rel string) error {
		var done []string
		for _, name := range strings.Split(rel, "/") {
			parent, err := openat2(bundle, path.Join(append([]string{"."}, done...)...), unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
			if err != nil {
				return fmt.Errorf("make mount point %s: %w", target, err)
			}
			err = unix.Mkdirat(parent, name, 0o711)
			unix.Close(parent)
			done = append(done, name)
			switch {
			case err == nil:
				a.dirs = append(a.dirs, filepath.Join(append([]string{a.bundle}, done...)...))
			case err != unix.EEXIST:
				return fmt.Errorf("make mount point %s: %w", target, err)
			}
		}
		return nil
	})
}

// undo unmounts and removes in reverse. What it could not take back stays
// listed for the next call.
func (a *assembly) undo() error {
	for len(a.done) > 0 {
		last := len(a.done) - 1
		if err := unix.Unmount(a.done[last].target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount rootfs mount %d, %s: %w", last, a.done[last].target, err)
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
