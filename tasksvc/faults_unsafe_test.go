package tasksvc

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// notification is struct seccomp_notif (seccomp_unotify(2), Linux 5.0).
type notification struct {
	id    uint64
	pid   uint32 // of the thread
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// notifyResponse is struct seccomp_notif_resp.
type notifyResponse struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

const (
	notifContinue    = 1 // SECCOMP_USER_NOTIF_FLAG_CONTINUE, Linux 5.5
	ioctlNotifRecv   = 0xc0502100
	ioctlNotifSend   = 0xc0182101
	filterTsync      = 1 << 0
	filterListener   = 1 << 3
	filterTsyncESRCH = 1 << 4
	filterWaitKill   = 1 << 5 // Linux 5.19: signals do not restart a call that is being looked at
)

// watchSyscalls makes every thread of this process, and all children from now
// on, ask before they make one of the calls. It returns the fd to be asked on.
func watchSyscalls(nrs []uint32) (int, error) {
	prog := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // seccomp_data.nr
	for i, nr := range nrs {
		prog = append(prog, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jt: uint8(len(nrs) - i)})
	}
	prog = append(prog, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, filterTsync|filterListener|filterTsyncESRCH|filterWaitKill, uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(prog)
	if errno != 0 {
		return -1, fmt.Errorf("seccomp: %w", errno)
	}
	return int(fd), nil
}

// nextNotification waits for a call to be decided on. ENOENT: it was given up.
func nextNotification(fd int) (notification, error) {
	var n notification
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlNotifRecv, uintptr(unsafe.Pointer(&n)))
	if errno != 0 {
		return n, errno
	}
	return n, nil
}

// decide lets the call be made, or fail.
func (n notification) decide(fd int, fail unix.Errno) error {
	r := notifyResponse{id: n.id, flags: notifContinue}
	if fail != 0 {
		r = notifyResponse{id: n.id, errno: -int32(fail)}
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlNotifSend, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return errno
	}
	return nil
}
