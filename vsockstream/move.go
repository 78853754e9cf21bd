package vsockstream

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// bufferSize is what a pipe holds by default (pipe(7)) and the largest packet
// of the virtio vsock transport.
const bufferSize = 64 << 10

// buffers is shared by all pumps: one that has nothing to move holds none.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// errEmpty: the source has nothing at the moment, and the pump is draining.
var errEmpty = errors.New("source is empty")

// dstError is an error of the destination.
type dstError struct{ err error }

func (e dstError) Error() string { return "write to the destination: " + e.err.Error() }
func (e dstError) Unwrap() error { return e.err }

func isDst(err error) bool { return errors.As(err, new(dstError)) }

// mover moves one portion after the other. It belongs to one goroutine.
//
// Waiting is done by the RawConns: they call a function until it says true and
// park the goroutine in between. The poller under them is edge-triggered, so a
// function may say false only after the descriptor itself has said that it is
// not ready.
type mover struct {
	src, dst side
	reopens  bool

	draining   bool // an empty source ends the pump ...
	quiet      bool // ... but only after it was awaited until the read deadline
	discarding bool // read and throw away
	splicing   bool // splice(2) serves this pair
	confused   int  // consecutive EAGAINs that neither side accounts for

	buf *[bufferSize]byte // held between a read and the end of its write
	n   int               // bytes in buf, or moved by splice
	off int               // bytes of buf written
	err error             // of the last attempt

	// Bound methods, made once: a closure per portion would be garbage.
	readFn, writeFn, spliceFn, writableFn func(fd uintptr) bool
	spliceToFn                            func(fd uintptr)
	spliceFrom                            int
	next                                  spliceNext
}

func newMover(cfg PumpConfig) (*mover, error) {
	src, err := inspect(cfg.Src, unix.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	dst, err := inspect(cfg.Dst, unix.O_WRONLY)
	if err != nil {
		return nil, fmt.Errorf("destination: %w", err)
	}
	m := &mover{src: src, dst: dst, reopens: cfg.Reopens, splicing: spliceable(dst, src)}
	m.readFn, m.writeFn = m.tryRead, m.tryWrite
	m.spliceFn, m.spliceToFn, m.writableFn = m.trySplice, m.spliceTo, m.writable
	return m, nil
}

// move waits for the source and moves what it gives. It returns io.EOF at the
// source's end, errEmpty when draining, a dstError if the destination is to
// blame; os.ErrDeadlineExceeded of either side comes through.
func (m *mover) move() (int64, error) {
	if m.splicing {
		return m.splice()
	}
	return m.copy()
}

func (m *mover) copy() (int64, error) {
	if err := m.src.raw.Read(m.readFn); err != nil {
		return 0, err
	}
	if m.err != nil {
		return 0, m.err
	}
	defer m.putBuffer()
	if m.discarding {
		return int64(m.n), nil
	}
	m.off = 0
	if err := m.dst.raw.Write(m.writeFn); err != nil {
		return int64(m.off), dstError{err}
	}
	if m.err != nil {
		return int64(m.off), dstError{m.err}
	}
	return int64(m.off), nil
}

func (m *mover) putBuffer() {
	buffers.Put(m.buf)
	m.buf = nil
}

// tryRead reads once. It takes a buffer only for the attempt if there is
// nothing to read.
func (m *mover) tryRead(fd uintptr) (done bool) {
	m.buf = buffers.Get().(*[bufferSize]byte)
	m.n, m.err = unix.Read(int(fd), m.buf[:])
	for m.err == unix.EINTR {
		m.n, m.err = unix.Read(int(fd), m.buf[:])
	}
	if m.n > 0 {
		return true
	}
	m.putBuffer()
	switch {
	case m.err == unix.EAGAIN:
		return m.empty()
	case m.err == nil:
		return m.eof(int(fd))
	case m.err == unix.EIO && m.src.kind == kindTTY:
		return m.hangup()
	}
	m.err = os.NewSyscallError("read", m.err)
	return true
}

// empty: nothing to read now. It says whether that ends the attempt.
func (m *mover) empty() bool {
	m.err = errEmpty
	return m.draining && !m.quiet
}

// eof: a read gave no byte. That is the end, save for a named pipe that no
// writer has opened yet: it has no POLLHUP (pipe_poll in fs/pipe.c) and wakes
// the poller when one comes.
func (m *mover) eof(fd int) bool {
	if m.src.kind == kindPipe && !m.draining && pollNow(fd, unix.POLLIN)&unix.POLLHUP == 0 {
		m.err = errEmpty
		return false
	}
	m.err = io.EOF
	return true
}

// hangup: no process has the terminal open. The kernel delivers all output
// before it says so. If it is opened again, the first output wakes the poller.
func (m *mover) hangup() bool {
	m.err = io.EOF
	return m.draining || !m.reopens
}

// tryWrite writes what is left of the buffer.
func (m *mover) tryWrite(fd uintptr) (done bool) {
	for m.off < m.n {
		n, err := unix.Write(int(fd), m.buf[m.off:m.n])
		switch {
		case n > 0:
			m.off += n
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return false
		case err == unix.EIO && m.dst.kind == kindTTY:
			// Nobody has the terminal open: what is typed is lost, as it
			// would be on a serial line.
			m.n = m.off
		case err == nil:
			m.err = io.ErrShortWrite
			return true
		default:
			m.err = os.NewSyscallError("write", err)
			return true
		}
	}
	m.err = nil
	return true
}

// discard is called when the destination has failed. It says whether reading on
// is of use. It keeps going whoever writes: a process must not be blocked or
// killed because the host is gone, nor the host be blocked because a process
// has closed its stdin. (Shutting the socket down for reading would not do: a
// writer that waits for space by poll(2) or epoll(7) is not woken by it.)
func (m *mover) discard() bool {
	if m.src.kind == kindFile {
		return false
	}
	m.discarding, m.splicing = true, false
	return true
}

// endDst tells the destination that no more bytes will come.
func (m *mover) endDst(keep bool) {
	switch m.dst.kind {
	case kindSocket:
		if c, ok := m.dst.end.(interface{ CloseWrite() error }); ok {
			c.CloseWrite() // fails if the peer is gone, which is all right
		}
	case kindPipe, kindFile:
		if !keep {
			m.dst.end.Close()
		}
	}
}
