package vsockstream

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

const (
	refusalLogEvery = time.Second
	maxAcceptPause  = time.Second
)

// listener is a net.Listener whose Accept returns allowed peers only and
// outlives passing errors.
type listener struct {
	inner net.Listener
	check func(net.Conn) error
	log   *slog.Logger
	done  chan struct{} // closed by Close

	mu       sync.Mutex // guards closed, lastLog and unlogged
	closed   bool
	lastLog  time.Time
	unlogged int
}

func newListener(inner net.Listener, check func(net.Conn) error, log *slog.Logger) *listener {
	return &listener{inner: inner, check: check, log: log, done: make(chan struct{})}
}

// Accept waits for the next connection of an allowed peer.
func (l *listener) Accept() (net.Conn, error) {
	pause := time.Duration(0)
	for {
		c, err := l.inner.Accept()
		if err == nil {
			if err = l.check(c); err == nil {
				return c, nil
			}
			c.Close()
			l.logRefusal(err)
			pause = 0
			continue
		}
		switch {
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.ECONNRESET),
			errors.Is(err, unix.EPROTO), errors.Is(err, unix.EINTR):
			// That one connection is gone; accept(2) says to go on.
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE),
			errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			pause = min(max(2*pause, 5*time.Millisecond), maxAcceptPause)
			l.log.Warn("accept paused: out of resources", "address", l.Addr(), "pause", pause, "err", err)
			if !l.sleep(pause) {
				return nil, net.ErrClosed
			}
		case l.isClosed():
			return nil, net.ErrClosed // a vsock may say EBADF
		default:
			return nil, err
		}
	}
}

// sleep waits for d and reports whether the listener is still open.
func (l *listener) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-l.done:
		return false
	}
}

func (l *listener) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// logRefusal keeps a peer that connects in a loop from filling the log.
func (l *listener) logRefusal(err error) {
	l.mu.Lock()
	now := time.Now()
	quiet := !l.lastLog.IsZero() && now.Sub(l.lastLog) < refusalLogEvery
	unlogged := l.unlogged
	if quiet {
		l.unlogged++
	} else {
		l.lastLog, l.unlogged = now, 0
	}
	l.mu.Unlock()
	if !quiet {
		l.log.Warn("peer refused", "address", l.Addr(), "err", err, "unlogged", unlogged)
	}
}

// Close stops the listener; connections already accepted live on. A unix
// socket's file is removed.
func (l *listener) Close() error {
	l.mu.Lock()
	first := !l.closed
	l.closed = true
	l.mu.Unlock()
	if !first {
		return nil
	}
	close(l.done)
	return l.inner.Close()
}

func (l *listener) Addr() net.Addr { return l.inner.Addr() }

// checkVsock judges a peer by its context id, which the transport fills in and
// a guest process cannot forge: the loopback transport always says
// VMADDR_CID_LOCAL, whichever context id was dialed.
func (c ListenConfig) checkVsock(conn net.Conn) error {
	a, ok := conn.RemoteAddr().(*vsock.Addr)
	if !ok {
		return fmt.Errorf("peer address %v is no vsock address", conn.RemoteAddr())
	}
	switch {
	case a.ContextID == vsock.Host, c.AllowLocal && a.ContextID == vsock.Local:
		return nil
	}
	return fmt.Errorf("peer %v is not the host", a)
}

// checkUnix lets in root and the daemon's own user by SO_PEERCRED, unix(7): the
// credentials are those at the time of connect(2).
func checkUnix(conn net.Conn) error {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("%T is no unix connection", conn)
	}
	var cred *unix.Ucred
	err := control(c, func(fd int) (err error) {
		cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return err
	})
	if err != nil {
		return fmt.Errorf("read peer credentials: %w", err)
	}
	if cred.Uid != 0 && cred.Uid != uint32(os.Geteuid()) {
		return fmt.Errorf("peer has uid %d (pid %d), which is neither root nor the daemon's user", cred.Uid, cred.Pid)
	}
	return nil
}
