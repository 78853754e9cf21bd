package tasksvc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// connKey is the context key under which a call finds its *conn.
type connKey struct{}

// conn is a connection that ttrpc serves. It adds what ttrpc does not do:
//
//   - A data frame on the stream of a unary call makes ttrpc 1.2.10 dereference
//     a nil pointer (serverConn.run, streamHandler.data), and PID 1 with it.
//     Such frames are turned into ones that ttrpc ignores.
//   - It knows which calls have been answered, down to the last byte written.
//     (ttrpc's own count is one too low after a readiness probe.)
//   - It remembers how the connection ended.
//   - A read that fails for good always looks like a reset, so that ttrpc ends
//     the connection; other errors it logs and then waits for nothing.
type conn struct {
	net.Conn
	in, out frameScanner // used by Read and Write alone
	ended   chan struct{}
	once    sync.Once  // of Close
	reading sync.Mutex // held during a Read
	// answered is called after every answer to a unary call, if set.
	answered func()

	mu      sync.Mutex      // guards all below
	pending map[uint32]bool // stream ids being served; true: may send data
	failed  bool            // a write has failed
	reset   bool            // the peer, or the device, dropped the connection
}

// fate is how a connection ended.
type fate int

const (
	fateOpen        fate = iota // it has not, as far as can be told
	fateClean                   // everything written has reached the peer, or was of no interest
	fateWriteFailed             // the last write failed, those before it did not
	fateReset                   // some of what was written may be lost
)

func newConn(c net.Conn) *conn {
	w := &conn{
		Conn:    c,
		ended:   make(chan struct{}),
		pending: map[uint32]bool{},
	}
	w.in = frameScanner{header: w.arriving, end: w.arrived}
	w.out = frameScanner{header: func(f frame) (byte, bool) { return f.kind, false }, end: w.sent}
	return w
}

// arriving decides about a frame from the peer.
func (c *conn) arriving(f frame) (kind byte, keep bool) {
	switch f.kind {
	case frameRequest:
		return f.kind, true
	case frameData:
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.pending[f.id] {
			return frameIgnored, false
		}
	}
	return f.kind, false
}

// arrived is told of a whole frame from the peer. Even ids are not requests:
// ttrpc refuses them (and so answers the probe of ten zero bytes).
func (c *conn) arrived(f frame, payload []byte) {
	if f.kind != frameRequest || f.id%2 == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, twice := c.pending[f.id]; !twice { // an id used twice stays what it was
		c.pending[f.id] = takesStream(requestMethod(payload))
	}
}

// sent is told of a whole frame to the peer.
func (c *conn) sent(f frame, _ []byte) {
	if f.kind == frameResponse && c.answered != nil {
		c.answered()
	}
	if f.kind == frameResponse || f.kind == frameData && f.flags&flagRemoteClosed != 0 {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.pending, f.id)
	}
}

// unanswered returns how many calls have not been answered in full.
func (c *conn) unanswered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pending)
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	n, err := c.Conn.Read(p)
	c.in.scan(p[:n])
	if err == nil {
		return n, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		c.reset = true
		if !errors.Is(err, syscall.ECONNRESET) {
			err = fmt.Errorf("%w: %w", syscall.ECONNRESET, err)
		}
	}
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.out.scan(p[:n])
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.failed = true
		c.reset = c.reset || errors.Is(err, syscall.ECONNRESET)
	}
	return n, err
}

// closeWrite says that everything has been sent.
func (c *conn) closeWrite() error {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return half.CloseWrite()
}

// Close implements net.Conn. The second close does nothing.
func (c *conn) Close() (err error) {
	c.once.Do(func() {
		// A unix socket whose peer closed it without reading everything says
		// so exactly once: to a read, to a write, or here (unix(7)).
		if socketError(c.Conn) == syscall.ECONNRESET {
			c.mu.Lock()
			c.reset = true
			c.mu.Unlock()
		}
		err = c.Conn.Close()
		close(c.ended)
	})
	return err
}

// fate returns how the connection ended. Calls are told of its end a moment
// before that is known, so it may wait for a moment, which on a machine that
// is short of CPU can be a long one.
func (c *conn) fate() fate {
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	select {
	case <-c.ended:
	case <-timeout.C:
		return fateOpen
	}
	c.reading.Lock() // a Read that was under way has told what it knows
	defer c.reading.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.reset:
		return fateReset
	case c.failed:
		return fateWriteFailed
	}
	return fateClean
}

// socketError takes the pending error of a socket (SO_ERROR, socket(7)); nil
// if there is none or c is not a socket.
func socketError(c net.Conn) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	var pending error
	raw.Control(func(fd uintptr) {
		if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err == nil && n != 0 {
			pending = syscall.Errno(n)
		}
	})
	return pending
}
