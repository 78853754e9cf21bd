package boot

import (
	"errors"
	"fmt"
	"io"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// MakeRootPivotable gives "/" a parent mount where it has none, and makes every
// mount below it shared.
//
// In an initramfs "/" is the kernel's first mount. It has no parent, so
// pivot_root(2) refuses to move it (EINVAL) in any mount namespace copied from
// ours. The cure is a recursive clone of the root mounted over itself; the
// whole process then moves into the clone. fchdir and chroot act on the
// fs_struct, which all threads of a Go process share (CLONE_FS).
//
// It has to run before anything else is mounted: a mount made earlier would be
// cloned, and its original would stay below, out of sight, for ever.
//
// "/" is made shared, recursively, as it is on a host run by systemd: mounts
// the daemon makes later become visible in containers that ask for rslave or
// rshared. Containers make their copy private or slave before anything else, as
// the runtime specification has them do anyway.
//
// Needs Linux 5.12 (mount_setattr(2)); open_tree(2) and move_mount(2) are 5.2.
func MakeRootPivotable(mounted []*mountinfo.Info) error {
	if rootHasNoParent(mounted) {
		if err := coverRoot(); err != nil {
			return err
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make / shared: %w", err)
	}
	return nil
}

// rootHasNoParent reports whether the mount that is "/" is the root of the
// mount tree: the kernel then shows it as its own parent (proc(5)). Of several
// mounts on "/" the last one listed is on top.
func rootHasNoParent(mounts []*mountinfo.Info) bool {
	none := false
	for _, m := range mounts {
		if m.Mountpoint == "/" {
			none = m.ID == m.Parent
		}
	}
	return none
}

// coverRoot mounts a clone of "/" over "/" and moves the process into it.
//
// The mount below is the one this program was loaded from, and so the one that
// /proc/PID/exe leads to in a container's first process until it has executed
// the container's program. Nobody has another use for it, so nothing is executed
// from it any more, nor written through it: a program called /proc/self/exe, or
// a script whose interpreter is, does not run the daemon inside the container
// and does not get a descriptor that could overwrite it (CVE-2019-5736; Linux
// 6.11 and 6.12 let running programs be written to, so "text file busy" is no
// defence).
func coverRoot() error {
	below, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /: %w", err)
	}
	defer unix.Close(below)
	clone, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("clone the root mount: %w", err)
	}
	defer unix.Close(clone)
	if err := unix.MoveMount(clone, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the clone over /: %w", err)
	}
	if err := unix.Fchdir(clone); err != nil {
		return fmt.Errorf("fchdir to the new root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot to the new root: %w", err)
	}
	if err := unix.MountSetattr(below, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOEXEC}); err != nil {
		return fmt.Errorf("have nothing executed from the covered root: %w", err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(below, "", unix.AT_EMPTY_PATH, attr); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("make the covered root read-only: %w", err)
	}
	return nil
}

// Mounted lists what is mounted, in the order of /proc/self/mountinfo.
func (p Procfs) Mounted() ([]*mountinfo.Info, error) {
	f, err := p.open("self/mountinfo", unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMountinfo(f)
}

func parseMountinfo(r io.Reader) ([]*mountinfo.Info, error) {
	mounts, err := mountinfo.GetMountsFromReader(r, nil)
	if err != nil {
		return nil, fmt.Errorf("parse mountinfo: %w", err)
	}
	return mounts, nil
}
