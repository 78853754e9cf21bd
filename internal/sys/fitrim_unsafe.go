package sys

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// fitrim is FITRIM of linux/fs.h: _IOWR('X', 121, struct fstrim_range).
const fitrim = 0xc0185879

// Fitrim has the file system that fd is on discard free extents of at least
// minimum bytes and returns how many bytes were (ioctl_fs(2), Linux 2.6.37).
func Fitrim(fd int, minimum uint64) (trimmed uint64, err error) {
	r := struct{ start, len, minlen uint64 }{0, ^uint64(0), minimum}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fitrim, uintptr(unsafe.Pointer(&r)))
	if errno != 0 {
		return 0, errno
	}
	return r.len, nil
}
