package vsockstream

import (
	"errors"
	"log/slog"
	"net"
	"syscall"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// Conn is what a stream is: a connection that can be half-closed and whose
// descriptor can be reached. *vsock.Conn and *net.UnixConn are Conns.
type Conn interface {
	net.Conn
	// CloseWrite tells the peer that no more bytes will come, shutdown(2)
	// with SHUT_WR, and leaves the other direction open.
	CloseWrite() error
	SyscallConn() (syscall.RawConn, error)
}

var (
	_ Conn = (*vsock.Conn)(nil)
	_ Conn = (*net.UnixConn)(nil)
	_ Conn = (*Stream)(nil)
)

// control runs fn on the descriptor of c, which stays open meanwhile.
func control(c syscall.Conn, fn func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var fnErr error
	if err := raw.Control(func(fd uintptr) { fnErr = fn(int(fd)) }); err != nil {
		return err
	}
	return fnErr
}

// deaf reports whether the peer of the socket fd can no longer receive: it is
// closed, reset, or shut down for reading. A send of no bytes tells on unix
// and on vsock sockets alike (af_unix.c, af_vsock.c: the shutdown check comes
// before the first byte) and leaves no trace at the peer.
func deaf(fd int) bool {
	for {
		err := unix.Send(fd, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		if err != unix.EINTR {
			return err != nil && !errors.Is(err, unix.EAGAIN)
		}
	}
}

func loggerOr(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
