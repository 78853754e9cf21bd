package vhostvsock

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// pumpSize is the most that a pump moves at once, bytes.
const pumpSize = 64 << 10

// pumpBuffers recycles what pumps read into. A pump holds one only while it has data.
var pumpBuffers = sync.Pool{New: func() any { return new([pumpSize]byte) }}

// source is the reading end of a pump.
type source struct {
	conn net.Conn
	raw  syscall.RawConn // nil: conn is not a socket of the kernel
}

func newSource(conn net.Conn) (*source, error) {
	s := &source{conn: conn}
	if sc, ok := conn.(syscall.Conn); ok {
		raw, err := sc.SyscallConn()
		if err != nil {
			return nil, err
		}
		s.raw = raw
	}
	return s, nil
}

// pump copies to dst until the end of data and passes that on as a half-close. An
// error means that the connection as a whole is over.
func (s *source) pump(dst net.Conn) error {
	if err := s.copyTo(dst); err != nil {
		return err
	}
	w, ok := dst.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return w.CloseWrite()
}

// copyTo copies until the end of data (nil) or an error.
func (s *source) copyTo(dst io.Writer) error {
	for {
		buf, n, err := s.read()
		if n > 0 {
			_, err = dst.Write(buf[:n])
		}
		if buf != nil {
			pumpBuffers.Put(buf)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// read waits for data and returns it in a buffer of the pool. n is 0 on error.
func (s *source) read() (buf *[pumpSize]byte, n int, err error) {
	if s.raw == nil {
		buf = pumpBuffers.Get().(*[pumpSize]byte)
		n, err = s.conn.Read(buf[:])
		if n > 0 {
			err = nil // it will come again
		}
		return buf, n, err
	}
	waitErr := s.raw.Read(func(fd uintptr) bool {
		buf = pumpBuffers.Get().(*[pumpSize]byte)
		n, err = ignoringEINTR(func() (int, error) { return unix.Read(int(fd), buf[:]) })
		if err == unix.EAGAIN {
			pumpBuffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	switch {
	case waitErr != nil:
		return buf, 0, waitErr
	case err != nil:
		return buf, 0, err
	case n == 0:
		return buf, 0, s.end()
	}
	return buf, n, nil
}

// end tells the end of a stream from a stream that was cut off.
func (s *source) end() error {
	if c, ok := s.conn.(*Conn); ok && c.end.reset.Load() {
		return unix.ECONNRESET
	}
	return io.EOF
}

// waitHangup, after the end of data, waits until the peer has closed both ways
// (end of file alone does not tell) or the deadline of conn expires.
func (s *source) waitHangup() {
	if s.raw == nil {
		_, _ = s.conn.Read(make([]byte, 1)) // the best that can be done
		return
	}
	_ = s.raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, err := ignoringEINTR(func() (int, error) { return unix.Poll(p, 0) })
		return err != nil || p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
}

// ignoringEINTR repeats a call that a signal interrupted.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}
