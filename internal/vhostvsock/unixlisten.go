package vhostvsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// maxSocketPath is the longest path of a unix socket, unix(7) sun_path less its NUL.
const maxSocketPath = 107

// listenUnix listens on a unix socket that only this user (and root) can connect
// to. A socket that a dead process left at path is replaced, one in use is not.
// Closing the listener removes the file.
func listenUnix(path string) (*net.UnixListener, error) {
	if path == "" || len(path) > maxSocketPath {
		return nil, sys.Invalidf("unix socket path %q has %d bytes: want 1 to %d", path, len(path), maxSocketPath)
	}
	ln, err := bindUnix(path)
	if errors.Is(err, unix.EADDRINUSE) && isStale(path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("replace stale socket: %w", err)
		}
		ln, err = bindUnix(path)
	}
	return ln, err
}

func bindUnix(path string) (*net.UnixListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		// bind(2) gives the file the mode of the socket: no moment in which others
		// could connect, as with chmod(2) (Linux, net/unix/af_unix.c, unix_bind_bsd).
		var err error
		if ctlErr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); ctlErr != nil {
			return ctlErr
		}
		return os.NewSyscallError("fchmod", err)
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return ln.(*net.UnixListener), nil
}

// isStale says whether path is a socket that nobody listens on.
func isStale(path string) bool {
	if st, err := os.Lstat(path); err != nil || st.Mode().Type() != fs.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}
