package vhostvsock

import (
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Addr is one end of a vsock connection.
type Addr struct {
	CID, Port uint32
}

// Network returns "vsock".
func (Addr) Network() string { return "vsock" }

// String returns "CID:PORT".
func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

// Conn is the host's end of a connection with the guest: a net.Conn that can be
// closed one way at a time. It is one end of a unix socket pair whose other end
// the Device serves. All methods may be called concurrently.
type Conn struct {
	unix          *net.UnixConn
	local, remote Addr
	end           *endState
}

// endState is what the Device tells a Conn about its end.
type endState struct {
	// reset is stored before the Device closes its end of the socket pair: the
	// connection was cut off, so the end of data is not the end of the stream.
	reset atomic.Bool
}

// set is called before the device closes fd, its end, after shutting it down for
// reading.
func (e *endState) set(fd int, reset bool) {
	e.reset.Store(reset)
	if reset {
		return
	}
	// A unix socket closed with unread data would give its peer ECONNRESET instead of
	// the end of file that the guest meant. There can be no more than a buffer full.
	scratch := chunks.Get().(*[chunkSize]byte)
	defer chunks.Put(scratch)
	for {
		if n, err := unix.Read(fd, scratch[:]); err != unix.EINTR && n <= 0 {
			return
		}
	}
}

var (
	_ net.Conn     = (*Conn)(nil)
	_ syscall.Conn = (*Conn)(nil)
)

// socketPair makes the two ends of a connection. The device's is returned as a
// non-blocking fd that the caller owns.
func socketPair() (device int, app *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, nil, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[1]), "vsock")
	c, err := net.FileConn(f) // duplicates
	_ = f.Close()
	if err != nil {
		_ = unix.Close(fds[0])
		return -1, nil, err
	}
	return fds[0], c.(*net.UnixConn), nil
}

// Read implements net.Conn. The guest's half-close and its close read as io.EOF; a
// connection cut off (guest or QEMU gone, or reset) as an error wrapping ECONNRESET,
// after everything that arrived before.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.unix.Read(b)
	if err == io.EOF && c.end.reset.Load() {
		err = &net.OpError{Op: "read", Net: "vsock", Source: c.local, Addr: c.remote, Err: unix.ECONNRESET}
	}
	return n, err
}

// Write implements net.Conn. It blocks while the guest does not read.
func (c *Conn) Write(b []byte) (int, error) { return c.unix.Write(b) }

// Close implements net.Conn. What was written before still reaches the guest, unless
// the guest reads nothing for half a minute or goes away.
func (c *Conn) Close() error { return c.unix.Close() }

// CloseWrite tells the guest that nothing more will be sent: it reads end of file
// after what was written before, and can go on sending.
func (c *Conn) CloseWrite() error { return c.unix.CloseWrite() }

// CloseRead tells the guest that nothing more will be received: its writes fail.
// The guest hears of it when it writes next.
func (c *Conn) CloseRead() error { return c.unix.CloseRead() }

// LocalAddr returns the host's Addr.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the guest's Addr.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error { return c.unix.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.unix.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.unix.SetWriteDeadline(t) }

// SyscallConn gives access to the unix stream socket underneath, for splice(2) and
// the like. There a reset is end of file.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.unix.SyscallConn() }
