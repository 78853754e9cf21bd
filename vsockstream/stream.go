package vsockstream

import (
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// Stream is a claimed connection. Its id is free again once it is closed.
type Stream struct {
	Conn
	id      string
	release func()

	mu     sync.Mutex // guards closed and fd
	closed bool
	fd     int // descriptor handed over with the id, or -1
}

// ID returns the id the stream was opened with.
func (s *Stream) ID() string { return s.id }

// TakeFD returns the descriptor that a local client handed over to be used in
// the stream's place (OpenWithFD), once: it then belongs to the caller. It is
// close-on-exec, and its O_NONBLOCK is the client's: the file description is
// shared, so leave its flags alone. ok is false if there is none.
func (s *Stream) TakeFD() (fd int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fd, s.fd = s.fd, -1
	return fd, fd >= 0
}

// Close closes the connection, and the descriptor if nobody took it. It may be
// called more than once.
func (s *Stream) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	closeFD(s.fd)
	s.fd = -1
	s.mu.Unlock()
	if !first {
		return nil
	}
	err := s.Conn.Close()
	s.release()
	return err
}

func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// maxRights is how many descriptors the control buffer has room for. One is
// expected; more than these the kernel closes itself (MSG_CTRUNC).
const maxRights = 4

// rightsReader reads from a connection and keeps the first descriptor that
// comes along by SCM_RIGHTS. Over vsock none can come. The owner closes fd.
type rightsReader struct {
	c      Conn
	fd     int  // the descriptor received, or -1
	excess bool // more than one came; the others are closed
}

func (r *rightsReader) Read(b []byte) (int, error) {
	c, ok := r.c.(*net.UnixConn)
	if !ok {
		return r.c.Read(b)
	}
	var oob [64]byte // CmsgSpace(4 * maxRights) is 32
	n, oobn, flags, _, err := c.ReadMsgUnix(b, oob[:unix.CmsgSpace(4*maxRights)])
	r.keepRights(oob[:oobn])
	if flags&unix.MSG_CTRUNC != 0 {
		r.excess = true
	}
	if n == 0 && err == nil && len(b) > 0 {
		err = io.EOF
	}
	return n, err
}

func (r *rightsReader) keepRights(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if r.fd < 0 {
				r.fd = fd
				continue
			}
			r.excess = true
			unix.Close(fd)
		}
	}
}
