package rootfs

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// asContainerRoot runs f with the file system ids of a process's root, so that
// what f makes belongs to the container, also on file systems that know no
// other ids than its. All capabilities stay (setfsuid(2) takes some away).
//
// Ids and capabilities belong to a thread: f runs on one of its own, which is
// given up if it cannot be made as it was.
func asContainerRoot(pid int, f func() error) error {
	uid, err := readIDMap(pid, "uid_map")
	if err != nil {
		return err
	}
	gid, err := readIDMap(pid, "gid_map")
	if err != nil {
		return err
	}
	if int(uid) == os.Geteuid() && int(gid) == os.Getegid() {
		return f()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err, restored := withFSIDs(int(uid), int(gid), f)
		if restored {
			runtime.UnlockOSThread()
		}
		done <- err // else the thread ends with the goroutine
	}()
	return <-done
}

// withFSIDs runs f on the calling thread and reports whether the thread is
// again what it was.
func withFSIDs(uid, gid int, f func() error) (err error, restored bool) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("capget: %w", err), true
	}
	oldUID, oldGID := os.Geteuid(), os.Getegid()
	set := func(uid, gid int) error {
		// They report the previous ids and no errors; asking again does.
		if _, err := unix.SetfsgidRetGid(gid); err != nil {
			return err
		}
		if _, err := unix.SetfsuidRetUid(uid); err != nil {
			return err
		}
		nowUID, _ := unix.SetfsuidRetUid(-1)
		nowGID, _ := unix.SetfsgidRetGid(-1)
		if nowUID != uid || nowGID != gid {
			return fmt.Errorf("set file system ids to %d and %d: %w", uid, gid, unix.EPERM)
		}
		return unix.Capset(&header, &caps[0])
	}
	if err = set(uid, gid); err == nil {
		err = f()
	}
	back := set(oldUID, oldGID)
	return errors.Join(err, back), back == nil
}
