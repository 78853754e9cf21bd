package nsexec

import (
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// statusSocket is the parent's end of the socket between it and a child. Most
// children get to their gate or their program within a millisecond, so a few of
// those who wait for one do it in the kernel: being woken there is some 70 us
// faster than through Go's poller. Only a few, because each keeps a thread; and
// the poller hears of the socket only when it is needed, because telling it
// wakes a thread of its own.
type statusSocket struct {
	fd   int
	file *os.File // fd, once it is known to the poller
}

const (
	briefWaits = 2
	briefWait  = 5 // ms
)

// waitBriefly waits for a message in the kernel.
func (s *statusSocket) waitBriefly() {
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, briefWait)
}

// read returns one message, or io.EOF when the child has closed its end.
func (s *statusSocket) read(b []byte, deadline time.Time) (int, error) {
	n, _, err := unix.Recvfrom(s.fd, b, unix.MSG_DONTWAIT)
	switch {
	case err == nil && n == 0:
		return 0, io.EOF
	case err != unix.EAGAIN && err != unix.EINTR:
		return n, err
	}
	if s.file == nil {
		if err := unix.SetNonblock(s.fd, true); err != nil {
			return 0, err
		}
		s.file = os.NewFile(uintptr(s.fd), "launch status")
	}
	if err := s.file.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	return s.file.Read(b)
}

// write sends one byte, for which there is always room.
func (s *statusSocket) write(c byte) error {
	_, err := unix.Write(s.fd, []byte{c})
	return err
}

// close may be called twice.
func (s *statusSocket) close() {
	switch {
	case s.file != nil:
		s.file.Close()
	case s.fd >= 0:
		unix.Close(s.fd)
	}
	s.fd, s.file = -1, nil
}
