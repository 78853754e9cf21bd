package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// terminalControl does to the terminal on stdin what takes a byte's address.
func terminalControl(request uintptr, arg string) error {
	b := [8]byte{arg[0]}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, 0, request, uintptr(unsafe.Pointer(&b))); errno != 0 {
		return errno
	}
	return nil
}
