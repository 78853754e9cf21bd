package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Child is what waitid(2) tells about one.
type Child struct {
	PID    int
	Code   int32 // CLD_EXITED, CLD_KILLED, CLD_DUMPED
	Status int   // exit code or signal number
}

// siginfoChild is the SIGCHLD form of siginfo_t on 64-bit Linux.
type siginfoChild struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	status                int32
	_                     [100]byte
}

// Waitid waits for a child (waitid(2)). With WNOHANG and nobody to report the
// PID is 0. EINTR is retried.
func Waitid(idType, id, options int) (Child, error) {
	var si siginfoChild
	for {
		err := unix.Waitid(idType, id, (*unix.Siginfo)(unsafe.Pointer(&si)), options, nil)
		if err == unix.EINTR {
			continue
		}
		return Child{PID: int(si.pid), Code: si.code, Status: int(si.status)}, err
	}
}
