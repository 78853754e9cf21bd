package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
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
// <bundle>/rootfs (design: WIRE.md section 4). The function returned undoes it
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
	err = o.mountOn(a.launcher, target)
	release() // the mount holds what it uses
	if err != nil {
		return err
	}
	a.done = append(a.done, doneMount{m.Source, target})
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
