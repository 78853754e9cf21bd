package seccomp

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// load puts a filter on the calling thread.
func load(f *Filter) (fd int, err error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, err
	}
	prog := unix.SockFprog{Len: uint16(len(f.Insns)), Filter: &f.Insns[0]}
	r, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// Of include/uapi/linux/seccomp.h.
type (
	notif struct {
		id         uint64
		pid, flags uint32
		data       data
	}
	notifResp struct {
		id         uint64
		val        int64
		err, flags int32
	}
)

// answer takes one notification from a listener and makes the call return val.
func answer(fd int, val int64) (nr uint32, err error) {
	var n notif
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
		return 0, errno
	}
	resp := notifResp{id: n.id, val: val}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&resp))); errno != 0 {
		return 0, errno
	}
	return n.data.nr, nil
}
