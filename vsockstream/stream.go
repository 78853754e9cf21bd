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

	mu     sync.Mutex // guards closed and fds
	closed bool
	fds    []int // descriptors handed over with the id
}

// ID returns the id the stream was opened with.
func (s *Stream) ID() string { return s.id }

// TakeFDs returns the descriptors that a local client handed over to be used in
// the stream's place (OpenWithFDs), in its order, once: they then belong to the
// caller. They are close-on-exec, and their O_NONBLOCK is the client's: the file
// descriptions are shared, so leave their flags alone. nil if there are none.
func (s *Stream) TakeFDs() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	fds := s.fds
	s.fds = nil
	return fds
}

// Close closes the connection, and the descriptors if nobody took them. It may
// be called more than once.
func (s *Stream) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	closeFDs(s.fds)
	s.fds = nil
	s.mu.Unlock()
	if !first {
		return nil
	}
	err := s.Conn.Close()
	s.release()
	return err
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// MaxFDs is how many descriptors can come with an id: SCM_MAX_FD, unix(7).
const MaxFDs = 253

// rightsReader reads from a connection and keeps the descriptors that come
// along by SCM_RIGHTS. Over vsock none can come. The owner closes fds.
type rightsReader struct {
	c      Conn
	oob    []byte // room for the control message
	fds    []int  // the descriptors received
	excess bool   // more than MaxFDs came; the others are closed
}

func (r *rightsReader) Read(b []byte) (int, error) {
	c, ok := r.c.(*net.UnixConn)
	if !ok {
		return r.c.Read(b)
	}
	if r.oob == nil {
		r.oob = make([]byte, unix.CmsgSpace(4*MaxFDs))
	}
	n, oobn, flags, _, err := c.ReadMsgUnix(b, r.oob)
	r.keepRights(r.oob[:oobn])
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
			if len(r.fds) < MaxFDs {
				r.fds = append(r.fds, fd)
				continue
			}
			r.excess = true
			unix.Close(fd)
		}
	}
}
