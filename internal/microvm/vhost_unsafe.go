package microvm

import (
	"crypto/rand"
	"encoding/binary"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// vhostVsockSetGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h,
// _IOW(0xAF, 0x60, __u64), Linux 4.8.
const vhostVsockSetGuestCID = 0x4008af60

// setGuestCID gives an open /dev/vhost-vsock its context id; EADDRINUSE if
// another machine has it. It lasts until the last descriptor is closed.
func setGuestCID(f *os.File, cid uint32) error {
	arg := uint64(cid)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), vhostVsockSetGuestCID, uintptr(unsafe.Pointer(&arg)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return os.NewSyscallError("ioctl VHOST_VSOCK_SET_GUEST_CID", errno)
	}
	return nil
}

// randomCID returns a context id that a guest can have and that nobody is
// likely to have chosen by hand.
func randomCID() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand
	return 1<<16 + binary.NativeEndian.Uint32(b[:])%(1<<30)
}
