package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/vsockstream"
)

// drainTimeout bounds how long the output of an ended process may take to reach
// a host that reads slowly, or never.
const drainTimeout = 10 * time.Second

// closeQuiet is how long after CloseIO a stdin stream that the host did not
// half-close must be silent to count as ended: bytes may still be under way.
const closeQuiet = time.Second

// stdioURIs say where a process's stdio goes (design: WIRE.md section 3).
type stdioURIs struct {
	stdin, stdout, stderr string
	terminal              bool
}

// stdio is the plumbing of one process. Opening, attachTerminal and start are
// for the one goroutine that launches the process; the rest is safe any time.
type stdio struct {
	uris    stdioURIs
	child   [3]*os.File // the process's own ends, closed once it has them; two may be one
	devNull *os.File    // the ends that lead nowhere
	given   *handover   // in place of them, or where a terminal goes to
	hold    io.Closer   // the writing side of stdin, until CloseIO: of a fifo, or rpcIn

	// What the StdIO service serves, see rpcio.go; nil for other URIs.
	rpcIn  *rpcInput
	rpcOut [2]*rpcOutput

	loggers []*logger // logging processes of binary:// URIs

	mu    sync.Mutex // guards all below
	in    *vsockstream.Pump
	out   []*vsockstream.Pump
	tty   *os.File           // master of the pty
	ends  [2]vsockstream.End // a terminal's streams, until there is a pty
	ended time.Time          // deadline of drain, if the process has ended
}

// openStdio opens what the URIs name and makes the process's ends. uid and gid
// will own the pipes, so that /dev/stdout can be opened again.
// given is what has come for fds:// URIs; it is the stdio's, also after an error.
func openStdio(ctx context.Context, hub *vsockstream.Hub, uris stdioURIs, given *handover, uid, gid uint32) (*stdio, error) {
	s := &stdio{uris: uris, given: given}
	if err := s.open(ctx, hub, int(uid), int(gid)); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *stdio) open(ctx context.Context, hub *vsockstream.Hub, uid, gid int) error {
	switch {
	case s.given != nil && s.uris.terminal:
		return s.openNull()
	case s.given != nil:
		return s.given.own(uint32(uid))
	case s.uris.terminal:
		return s.openTerminal(ctx, hub)
	}
	if err := s.openInput(ctx, hub, uid, gid); err != nil {
		return err
	}
	for i, uri := range []string{s.uris.stdout, s.uris.stderr} {
		if i == 1 && uri != "" && uri == s.uris.stdout && !keepsApart(uri) {
			s.child[2] = s.child[1]
			break
		}
		if err := s.openOutput(ctx, hub, 1+i, uri, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

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

// openTerminal opens the streams of a terminal; until the child has its pty, its
// fds are /dev/null.
func (s *stdio) openTerminal(ctx context.Context, hub *vsockstream.Hub) error {
	if err := s.openNull(); err != nil {
		return err
	}
	for i, uri := range []string{s.uris.stdin, s.uris.stdout} {
		if uri == "" {
			continue
		}
		if i == 1 && uri == s.uris.stdin && schemeOf(uri) != "rpcio" {
			return sys.Invalidf("stdin and stdout of a terminal need streams of their own")
		}
		end, err := s.openEnd(ctx, hub, uri, i)
		if err != nil {
			return fmt.Errorf("terminal %s: %w", uri, err)
		}
		s.ends[i] = end
	}
	return nil
}

// attachTerminal connects the streams with the pty's master, which is the
// stdio's from now on.
func (s *stdio) attachTerminal(master int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := unix.SetNonblock(master, true); err != nil {
		unix.Close(master)
		return fmt.Errorf("terminal: %w", err)
	}
	s.tty = os.NewFile(uintptr(master), "pty")
	var err error
	if s.ends[0] != nil {
		s.in, err = vsockstream.NewPump(vsockstream.PumpConfig{Dst: s.tty, Src: s.ends[0], KeepDst: true})
		s.ends[0] = nil
		if err != nil {
			return err
		}
	}
	if s.ends[1] == nil { // nobody looks: but somebody must read
		if s.ends[1], err = os.OpenFile("/dev/null", os.O_WRONLY, 0); err != nil {
			return err
		}
	}
	pump, err := vsockstream.NewPump(vsockstream.PumpConfig{Dst: s.ends[1], Src: s.tty, KeepSrc: true, Reopens: true})
	s.ends[1] = nil
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

// fd is the daemon's number of what is to be the process's fd i.
func (s *stdio) fd(i int) int {
	if s.child[i] == nil {
		return s.given.fds[i]
	}
	return int(s.child[i].Fd())
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

// start lets the bytes move. The process exists and has its ends.
func (s *stdio) start() {
	s.closeChild()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in != nil {
		_ = s.in.Start()
	}
	for _, p := range s.out {
		_ = p.Start()
		if !s.ended.IsZero() {
			p.Drain(s.ended)
		}
	}
}

func (s *stdio) closeChild() {
	for i, f := range s.child {
		if f != nil {
			f.Close()
			s.child[i] = nil
		}
	}
	s.given.closeFDs()
}

// drain moves what is left after the process has ended. It does not wait.
func (s *stdio) drain(deadline time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = deadline
	for _, p := range s.out {
		p.Drain(deadline)
	}
}

// drained waits until all output is out or the deadline of drain has passed.
func (s *stdio) drained(ctx context.Context) error {
	s.mu.Lock()
	out := s.out
	s.mu.Unlock()
	for _, p := range out {
		select {
		case <-p.Done():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// closeStdin ends the process's stdin once everything sent so far is in it.
func (s *stdio) closeStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hold != nil {
		s.hold.Close()
	} else if s.in != nil {
		s.in.DrainQuiet(closeQuiet, time.Time{})
	}
}

// resize sets the size of the terminal.
func (s *stdio) resize(width, height uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tty == nil {
		return sys.Mark(sys.ErrState, errors.New("the process has no terminal"))
	}
	rc, err := s.tty.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = rc.Control(func(fd uintptr) {
		ioctlErr = setSize(int(fd), width, height)
	})
	return errors.Join(err, ioctlErr)
}

func setSize(tty int, width, height uint32) error {
	if err := unix.IoctlSetWinsize(tty, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(height), Col: uint16(width)}); err != nil {
		return fmt.Errorf("set the size of the terminal: %w", err)
	}
	return nil
}

// close ends everything, delivered or not. Safe to call twice.
func (s *stdio) close() {
	s.closeChild()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.ends {
		if e != nil {
			e.Close()
		}
	}
	if s.in != nil {
		s.in.Close()
	}
	for _, p := range s.out {
		p.Close()
	}
	if s.hold != nil {
		s.hold.Close()
	}
	for _, o := range s.rpcOut {
		if o != nil {
			o.close()
		}
	}
	for _, l := range s.loggers {
		l.end()
	}
	if s.tty != nil {
		s.tty.Close()
	}
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
