package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/vsockstream"
)

func (s *stdio) openInput(ctx context.Context, hub *vsockstream.Hub, uid, gid int) error {
	if s.uris.stdin == "" {
		return s.null(0)
	}
	src, err := s.openEnd(ctx, hub, s.uris.stdin, 0)
	if err != nil {
		return fmt.Errorf("stdin %s: %w", s.uris.stdin, err)
	}
	r, w, err := pipe(false, uid, gid)
	if err != nil {
		src.Close()
		return fmt.Errorf("stdin: %w", err)
	}
	s.child[0] = r
	s.in, err = vsockstream.NewPump(vsockstream.PumpConfig{Dst: w, Src: src})
	return err
}

func (s *stdio) openOutput(ctx context.Context, hub *vsockstream.Hub, fd int, uri string, uid, gid int) error {
	if uri == "" {
		return s.null(fd)
	}
	dst, err := s.openEnd(ctx, hub, uri, fd)
	if err != nil {
		return fmt.Errorf("%s %s: %w", [3]string{"stdin", "stdout", "stderr"}[fd], uri, err)
	}
	r, w, err := pipe(true, uid, gid)
	if err != nil {
		dst.Close()
		return fmt.Errorf("fd %d: %w", fd, err)
	}
	s.child[fd] = w
	pump, err := vsockstream.NewPump(vsockstream.PumpConfig{Dst: dst, Src: r})
	if err != nil {
		return err
	}
	s.out = append(s.out, pump)
	return nil
}

// schemeOf returns the scheme of a URI; a bare path is a fifo.
func schemeOf(uri string) string {
	if scheme, _, ok := strings.Cut(uri, "://"); ok {
		return scheme
	}
	return "fifo"
}

// keepsApart reports whether a URI that is both stdout's and stderr's means two
// streams all the same.
func keepsApart(uri string) bool {
	scheme := schemeOf(uri)
	return scheme == "rpcio" || scheme == "binary"
}

// openEnd opens one URI on the daemon's side, for the process's fd 0, 1 or 2.
func (s *stdio) openEnd(ctx context.Context, hub *vsockstream.Hub, uri string, fd int) (vsockstream.End, error) {
	output := fd > 0
	scheme, path := "fifo", uri
	if strings.Contains(uri, "://") {
		u, err := url.Parse(uri)
		if err != nil {
			return nil, sys.Mark(sys.ErrInvalid, err)
		}
		scheme, path = u.Scheme, u.Path
		if scheme == "stream" {
			path = strings.TrimPrefix(uri, "stream://")
		}
	}
	switch scheme {
	case "stream":
		if hub == nil {
			return nil, sys.Unsupportedf("no stream listener is configured")
		}
		return hub.Claim(ctx, path)
	case "fifo":
		return s.openFifo(path, output)
	case "file":
		if !output || !filepath.IsAbs(path) {
			return nil, sys.Invalidf("a file:// URI is for output and has an absolute path")
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, err
		}
		return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o644)
	case "rpcio":
		return s.openRPC(fd)
	case "binary":
		return s.openLogger(uri, fd)
	}
	return nil, sys.Invalidf("scheme %q is not one of stream, fifo, file, binary, rpcio", scheme)
}

// openFifo opens a named pipe without waiting for the peer. For output it is
// held open for reading too, so that a reader may come and go; for input a
// writer is held until CloseIO, so that a host may open it more than once.
func (s *stdio) openFifo(path string, output bool) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, sys.Invalidf("the path is not absolute")
	}
	flags := os.O_RDWR
	if !output {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || st.Mode().Type() != os.ModeNamedPipe {
		f.Close()
		return nil, errors.Join(err, sys.Invalidf("not a named pipe"))
	}
	if !output {
		if s.hold, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// openRPC makes the pipe that the StdIO service is at the other end of.
func (s *stdio) openRPC(fd int) (end *os.File, err error) {
	if fd == 0 {
		if s.rpcIn, end, err = newRPCInput(); err == nil {
			s.hold = s.rpcIn
		}
		return end, err
	}
	s.rpcOut[fd-1], end, err = newRPCOutput()
	return end, err
}

// openNull makes /dev/null of all three.
func (s *stdio) openNull() error {
	for fd := range 3 {
		if err := s.null(fd); err != nil {
			return err
		}
	}
	return nil
}

// null opens /dev/null without telling the poller, which has no use for it.
func (s *stdio) null(fd int) error {
	if s.devNull != nil {
		s.child[fd] = s.devNull
		return nil
	}
	n, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	s.devNull = os.NewFile(uintptr(n), "/dev/null")
	s.child[fd] = s.devNull
	return nil
}

// pipe makes a pipe whose daemon end is pollable and whose process end blocks,
// as programs expect. It returns the reading and the writing end.
func pipe(output bool, uid, gid int) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	ours, theirs := fds[1], fds[0]
	if output {
		ours, theirs = fds[0], fds[1]
	}
	err = unix.SetNonblock(ours, true)
	if err == nil && (uid != 0 || gid != 0) {
		err = unix.Fchown(theirs, uid, gid)
	}
	if err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}
