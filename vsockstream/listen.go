package vsockstream

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"syscall"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// backlog is the accept queue asked for; net.core.somaxconn (4096 since Linux
// 5.4) caps it. A virtio vsock resets a connection that finds the queue full,
// so a host that opens many streams at once needs a deep one.
const backlog = 4096

// ListenConfig says who may connect besides the host. The zero value lets in
// the host only.
type ListenConfig struct {
	// AllowLocal also lets in peers on this machine (VMADDR_CID_LOCAL). It
	// gives every process in the guest the control plane: for tests and
	// debugging only. Unix sockets ignore it.
	AllowLocal bool
	// Logger hears of refused peers, at most once a second. nil is silence.
	Logger *slog.Logger
}

// Listen listens on "vsock://CID:PORT", where CID is a number, "any" or empty
// for any, and port 0 lets the kernel choose; or on "unix:///path", where a
// stale socket is removed and the new one has mode 0600 from its first moment.
//
// Accept of the result returns Conns of allowed peers only: over vsock the host
// (VMADDR_CID_HOST), over a unix socket root and the daemon's own user by
// SO_PEERCRED. Anyone else is closed at once and Accept goes on; so it does
// after a connection that was aborted, and after a pause when descriptors or
// memory are short. It ends only by Close. Accept may be called concurrently.
func (c ListenConfig) Listen(addr string) (net.Listener, error) {
	a, err := parseAddress(addr)
	if err != nil {
		return nil, err
	}
	var inner net.Listener
	var check func(net.Conn) error
	switch a.scheme {
	case schemeVsock:
		inner, err = listenVsock(a)
		check = c.checkVsock
	case schemeUnix:
		inner, err = listenUnix(a)
		check = checkUnix
	default:
		err = sys.Invalidf("a %s address can be dialed, not listened on", a.scheme)
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	return newListener(inner, check, loggerOr(c.Logger)), nil
}

// listenVsock makes the socket itself because the vsock package fixes the
// backlog at 128.
func listenVsock(a address) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, sys.Unsupportedf("socket: %w: this kernel has no AF_VSOCK; load vsock and vmw_vsock_virtio_transport", err)
	}
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), a.String())
	defer f.Close() // FileListener works on a duplicate
	port := a.port
	if port == 0 {
		port = unix.VMADDR_PORT_ANY
	}
	if err := unix.Bind(fd, &unix.SockaddrVM{CID: a.cid, Port: port}); err != nil {
		return nil, bindHint(a, os.NewSyscallError("bind", err))
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, os.NewSyscallError("listen", err)
	}
	return vsock.FileListener(f)
}

// bindHint says what to do about the commonest bind failure: a context id that
// is not this machine's.
func bindHint(a address, err error) error {
	if !errors.Is(err, unix.EADDRNOTAVAIL) {
		return err
	}
	if own, cidErr := vsock.ContextID(); cidErr == nil {
		return fmt.Errorf("%w: this machine's context id is %d, not %d; \"any\" fits every machine", err, own, a.cid)
	}
	return fmt.Errorf("%w: this machine has no context id yet; is a vsock transport loaded?", err)
}

func listenUnix(a address) (net.Listener, error) {
	if err := removeStale(a.path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var chmodErr error
		// The file gets the mode of the unbound socket (unix_bind_bsd in
		// af_unix.c), so there is no moment at which others may connect.
		err := rc.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, os.NewSyscallError("fchmod", chmodErr))
	}}
	l, err := lc.Listen(context.Background(), "unix", a.path)
	if err != nil {
		return nil, err
	}
	file, err := os.Lstat(a.path)
	if err != nil {
		l.Close()
		return nil, err
	}
	return ownSocket{l.(*net.UnixListener), a.path, file}, nil
}

// ownSocket removes its file when it is closed, but not one that has come in its
// place: the directory may have been removed and made anew. A bound socket keeps
// its inode, so no other file has the same.
type ownSocket struct {
	*net.UnixListener
	path string
	file fs.FileInfo
}

func (l ownSocket) Close() error {
	now, err := os.Lstat(l.path)
	l.SetUnlinkOnClose(err == nil && os.SameFile(l.file, now))
	return l.UnixListener.Close()
}

// removeStale removes the socket at path if nobody listens on it. Whatever else
// is at path is an error: it is not ours to remove.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return sys.Mark(sys.ErrExists, fmt.Errorf("%s exists and is not a socket", path))
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return sys.Mark(sys.ErrExists, fmt.Errorf("another process listens on %s", path))
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("probe the socket that exists already: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}
