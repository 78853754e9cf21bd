package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/signal"
	"runtime"

	"golang.org/x/sys/unix"
)

// A file system in user space that mounts, shows an empty directory, and never
// answers who looks something up in it (linux/fuse.h, protocol 7.31).

const (
	fuseLookup  = 1
	fuseGetattr = 3
	fuseInit    = 26

	fuseInHeader = 40
	fuseRootMode = unix.S_IFDIR | 0o755
)

// runFuse mounts it where PID 1 sees it: whoever is stuck in it must live
// longer than the one that could answer is willing to.
func runFuse(c *invocation) int {
	dir := c.parse(1, 1)[0]
	end := make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM)
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		err = inInit(func() error {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
			return unix.Mount("stuck", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other", fd, fuseRootMode))
		})
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "probe fuse: %v\n", err)
		return exitFailed
	}
	go fuseServe(fd)
	<-end
	err = inInit(func() error {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return err
		}
		return os.Remove(dir)
	})
	if err != nil {
		fmt.Fprintf(os.Stderr, "probe fuse: %v\n", err)
		return exitFailed
	}
	return 0
}

// inInit runs f in the mount namespace of PID 1.
func inInit(f func() error) error {
	return inThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2) wants it
			return err
		}
		ns, err := unix.Open("/proc/1/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(ns)
		if err := unix.Setns(ns, unix.CLONE_NEWNS); err != nil {
			return err
		}
		return f()
	})()
}

func fuseServe(fd int) {
	runtime.LockOSThread()
	buf := make([]byte, 1<<20)
	le := binary.NativeEndian
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR || err == unix.ENOENT || err == unix.EAGAIN:
			continue
		case err != nil || n < fuseInHeader:
			return // unmounted
		}
		opcode, unique := le.Uint32(buf[4:]), le.Uint64(buf[8:])
		var out []byte
		switch opcode {
		case fuseInit:
			out = make([]byte, 64)
			le.PutUint32(out[0:], 7)
			le.PutUint32(out[4:], 31)
			le.PutUint32(out[12:], 1<<18) // FUSE_PARALLEL_DIROPS: one that waits does not block the next
			le.PutUint32(out[20:], 4096)  // max_write
			fmt.Println("ready")
		case fuseGetattr:
			out = make([]byte, 104)
			le.PutUint64(out[0:], 1<<20) // seconds that it is good for
			le.PutUint64(out[16:], 1)    // inode
			le.PutUint32(out[76:], fuseRootMode)
			le.PutUint32(out[80:], 2) // links
		case fuseLookup:
			fmt.Println("stuck")
			continue
		default:
			continue
		}
		header := make([]byte, 16, 16+len(out))
		le.PutUint32(header[0:], uint32(16+len(out)))
		le.PutUint64(header[8:], unique)
		_, _ = unix.Write(fd, append(header, out...))
	}
}
