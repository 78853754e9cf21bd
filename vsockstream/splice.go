package vsockstream

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// maxSplice is the most one splice(2) is asked to move: a pipe's largest size
// for an unprivileged user.
const maxSplice = 1 << 20

// maxConfused is after how many EAGAINs in a row that poll(2) cannot explain
// the mover goes back to copying.
const maxConfused = 8

// spliceable says where splice(2) is worth trying. One side must be a pipe, and
// the destination no vsock: before Linux 6.5 such a splice sends each page of
// the pipe as a packet of its own (generic_splice_sendpage), and a vsock copies
// anyway. Instructions that a 6.1 guest spends on 64 KiB through a pump, writer
// and reader included, in thousands (BenchmarkPump under QEMU -icount):
//
//	            splice  copy
//	pipe -> unix    75    96
//	pipe -> vsock  245   113
//	unix -> pipe    54    94
//	vsock -> pipe   99   104
func spliceable(dst, src side) bool {
	if dst.vsock || dst.append || src.kind == kindTTY || dst.kind == kindTTY {
		return false
	}
	return src.kind == kindPipe || dst.kind == kindPipe
}

// spliceNext is what an attempt to splice leaves to do.
type spliceNext int

const (
	spliceDone   spliceNext = iota // m.n and m.err have the outcome
	spliceAwait                    // wait for the destination
	spliceRetry                    // both sides are ready again
	spliceGiveUp                   // copy instead; nothing was consumed
)

// splice moves one portion by splice(2). It has two sides to wait for and one
// EAGAIN for both, so each is asked by poll(2).
func (m *mover) splice() (int64, error) {
	if err := m.src.raw.Read(m.spliceFn); err != nil {
		return 0, err
	}
	switch m.next {
	case spliceAwait:
		if err := m.dst.raw.Write(m.writableFn); err != nil {
			return 0, dstError{err}
		}
		return 0, nil
	case spliceRetry:
		if m.confused++; m.confused < maxConfused {
			return 0, nil
		}
		m.splicing = false
		return 0, nil
	case spliceGiveUp:
		m.splicing = false
		return 0, nil
	}
	m.confused = 0
	return int64(m.n), m.err
}

// trySplice is called with the source's descriptor, and parks on it only.
func (m *mover) trySplice(fd uintptr) (done bool) {
	m.next, m.n, m.err = spliceDone, 0, nil
	m.spliceFrom = int(fd)
	// Control keeps the destination's descriptor from being closed meanwhile.
	if err := m.dst.raw.Control(m.spliceToFn); err != nil {
		m.err = dstError{err}
		return true
	}
	switch {
	case m.n > 0:
		return true
	case m.err == nil:
		return m.eof(int(fd))
	case m.err == unix.EAGAIN:
		return m.whoIsNotReady(int(fd))
	case errors.Is(m.err, unix.EINVAL), errors.Is(m.err, unix.ENOSYS), errors.Is(m.err, unix.EPERM), errors.Is(m.err, unix.EOPNOTSUPP):
		// EPERM: a seccomp filter around the daemon. A call that fails has
		// consumed nothing.
		m.next = spliceGiveUp
		return true
	}
	m.blame()
	return true
}

// spliceTo is called with the destination's descriptor.
func (m *mover) spliceTo(fd uintptr) {
	for {
		n, err := unix.Splice(m.spliceFrom, nil, int(fd), nil, maxSplice, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if err != unix.EINTR {
			m.n, m.err = max(0, int(n)), err // n is -1 on error
			return
		}
	}
}

// whoIsNotReady sorts out an EAGAIN. The source comes first: if it is not
// ready, parking on it is safe, since its next byte is a new edge.
func (m *mover) whoIsNotReady(src int) (done bool) {
	if pollNow(src, unix.POLLIN) == 0 {
		return m.empty()
	}
	m.next, m.err = spliceRetry, nil
	err := m.dst.raw.Control(func(fd uintptr) {
		if pollNow(int(fd), unix.POLLOUT) == 0 {
			m.next = spliceAwait
		}
	})
	if err != nil {
		m.next, m.err = spliceDone, dstError{err}
	}
	return true
}

// writable is called with the destination's descriptor.
func (m *mover) writable(fd uintptr) bool { return pollNow(int(fd), unix.POLLOUT) != 0 }

// blame decides whose error splice(2) has returned. A pipe as source does not
// fail; a pipe as destination fails with EPIPE.
func (m *mover) blame() {
	err := os.NewSyscallError("splice", m.err)
	if m.src.kind == kindPipe || m.err == unix.EPIPE {
		err = dstError{err}
	}
	m.err = err
}
