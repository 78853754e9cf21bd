package vhostvsock

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// vector is the reusable iovec array of a goroutine that does scattered input and output.
type vector struct {
	iov []unix.Iovec
}

// set points the array at bufs, which must not hold empty slices or more than maxSegments.
func (v *vector) set(bufs [][]byte) {
	v.iov = v.iov[:0]
	for _, b := range bufs {
		e := unix.Iovec{Base: unsafe.SliceData(b)}
		e.SetLen(len(b))
		v.iov = append(v.iov, e)
	}
}

// clear forgets the pointers: they lead into mappings that come and go.
func (v *vector) clear() { clear(v.iov) }

// receive fills bufs from the non-blocking socket fd: readv(2).
func (v *vector) receive(fd int, bufs [][]byte) (int, error) {
	if len(bufs) == 0 {
		return 0, unix.EINVAL
	}
	v.set(bufs)
	defer v.clear()
	for {
		n, _, errno := unix.Syscall(unix.SYS_READV, uintptr(fd), uintptr(unsafe.Pointer(&v.iov[0])), uintptr(len(v.iov)))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// send writes bufs to the socket fd without blocking and without SIGPIPE: sendmsg(2).
func (v *vector) send(fd int, bufs [][]byte) (int, error) {
	if len(bufs) == 0 {
		return 0, nil
	}
	v.set(bufs)
	defer v.clear()
	msg := unix.Msghdr{Iov: &v.iov[0]}
	msg.SetIovlen(len(v.iov))
	for {
		n, _, errno := unix.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
