package main

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Signal dispositions of rt_sigaction(2).
const (
	sigDefault = 0
	sigIgnore  = 1
)

// sigaction is the kernel's struct sigaction on amd64 and arm64.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// setSignal takes a signal away from the Go runtime, which would swallow some
// that should kill (USR1 for one).
func setSignal(sig unix.Signal, handler uintptr) error {
	act := sigaction{handler: handler}
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&act)), 0, unsafe.Sizeof(act.mask), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
