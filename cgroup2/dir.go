package cgroup2

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// openBeneath keeps every lookup below the directory it starts from
	// (openat2(2), Linux 5.6).
	openBeneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS |
		unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

	// maxFile bounds what is read from one cgroup file. cgroup.procs is the
	// only one that grows: eight bytes per process, four million at most.
	maxFile = 64 << 20
)

// openAt opens name below dirfd, close-on-exec. The caller owns the result.
func openAt(dirfd int, name string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: openBeneath}
	for {
		fd, err := unix.Openat2(dirfd, name, &how)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// readAt returns the contents of the file name below dirfd. Errors are bare
// errnos: the caller knows which cgroup it was.
func readAt(dirfd int, name string) ([]byte, error) {
	return readInto(dirfd, name, make([]byte, 0, 2048))
}

// readInto is readAt with a buffer to use: the result is in buf's memory if
// that is large enough. buf must have a capacity.
func readInto(dirfd int, name string, buf []byte) ([]byte, error) {
	buf = buf[:0]
	fd, err := openAt(dirfd, name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := unix.Read(fd, buf[len(buf):cap(buf)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case n == 0:
			return buf, nil
		default:
			buf = buf[:len(buf)+n]
		}
		if len(buf) > maxFile {
			return nil, unix.EFBIG
		}
	}
}

// writeAt writes value to the file name below dirfd with a single write(2),
// as cgroupfs parses each write on its own.
func writeAt(dirfd int, name, value string) error {
	fd, err := openAt(dirfd, name, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Write(fd, []byte(value))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return err
		case n != len(value):
			return io.ErrShortWrite
		}
		return nil
	}
}

// dir is a directory of cgroupfs held open. Its methods are safe for
// concurrent use and fail with os.ErrClosed once it is closed.
type dir struct {
	file *os.File
	conn syscall.RawConn // pins the descriptor while an operation uses it
}

// newDir takes ownership of fd.
func newDir(fd int, name string) (dir, error) {
	f := os.NewFile(uintptr(fd), name)
	conn, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return dir{}, err
	}
	return dir{f, conn}, nil
}

// do runs fn with the descriptor, which stays open meanwhile.
func (d dir) do(fn func(fd int) error) error {
	var inner error
	if err := d.conn.Control(func(fd uintptr) { inner = fn(int(fd)) }); err != nil {
		return fmt.Errorf("cgroup directory: %w", os.ErrClosed)
	}
	return inner
}

func (d dir) read(name string) (data []byte, err error) {
	err = d.do(func(fd int) error {
		data, err = readAt(fd, name)
		return err
	})
	return data, err
}

func (d dir) write(name, value string) error {
	return d.do(func(fd int) error { return writeAt(fd, name, value) })
}

func (d dir) open(name string, flags int) (fd int, err error) {
	fd = -1
	err = d.do(func(dirfd int) error {
		fd, err = openAt(dirfd, name, flags)
		return err
	})
	return fd, err
}

// absent reports that a file is not there: the controller is off, the kernel
// is too old, or the whole cgroup has been removed.
func absent(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }
