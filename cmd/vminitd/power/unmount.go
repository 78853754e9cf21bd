package power

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// unmountAll unmounts every filesystem whose contents outlive the machine, last
// mounted first. What is still in use is made read-only, which writes it out
// just as well.
func unmountAll(ctx context.Context) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	mounts, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var errs []error
	for _, m := range lasting(mounts) {
		if ctx.Err() != nil {
			return errors.Join(append(errs, ctx.Err())...)
		}
		errs = append(errs, unmount(m.Mountpoint))
	}
	return errors.Join(errs...)
}

// lasting returns the mounts to undo, in the order to undo them: the reverse of
// the kernel's list, which shows parents before children. Filesystems that live
// in memory or show kernel state have nothing to lose and are left out.
func lasting(mounts []*mountinfo.Info) []*mountinfo.Info {
	var undo []*mountinfo.Info
	for i := len(mounts) - 1; i >= 0; i-- {
		if !inMemory(mounts[i].FSType) {
			undo = append(undo, mounts[i])
		}
	}
	return undo
}

func inMemory(fstype string) bool {
	switch fstype {
	case "rootfs", "ramfs", "tmpfs", "devtmpfs", "devpts", "proc", "sysfs", "cgroup", "cgroup2",
		"bpf", "mqueue", "securityfs", "debugfs", "tracefs", "configfs", "pstore", "efivarfs",
		"hugetlbfs", "nsfs", "binfmt_misc", "fusectl", "autofs":
		return true
	}
	return false
}

func unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	// EINVAL: gone already, with a parent or a peer. The root cannot be unmounted.
	if err == nil || errors.Is(err, unix.EINVAL) && target != "/" {
		return nil
	}
	if ro := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); ro != nil {
		return fmt.Errorf("unmount %s: %w; make it read-only instead: %w", target, err, ro)
	}
	return nil
}
