package tasksvc

import (
	"context"
	"io"
	"os"
	"sync"
	"time"

	"vminit/vsockstream"
)

// streamLinger is how long a stream may stay open after the last byte, for its
// other side to read it: some backends throw away what is unread when it is closed.
const streamLinger = 10 * time.Second

// closeQuiet is how long after CloseIO a stdin stream that the host did not
// half-close must be silent to count as ended: bytes may still be under way.
const closeQuiet = time.Second

// stdioURIs say where a process's stdio goes (docs/wire.md, section 3).
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
	ended bool               // the process has, see drain

	lingers bool // close leaves streams open until their readers have closed
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

// fd is the daemon's number of what is to be the process's fd i.
func (s *stdio) fd(i int) int {
	if s.child[i] == nil {
		return s.given.fds[i]
	}
	return int(s.child[i].Fd())
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
		if s.ended {
			p.Drain(time.Time{})
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

// drain moves what is left after the process has ended. It does not wait: a host
// that reads slowly, or never, has until Delete.
func (s *stdio) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, p := range s.out {
		p.Drain(time.Time{})
	}
}

// drained waits until all output is out.
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

// linger has close leave streams to their readers for a while.
func (s *stdio) linger() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lingers = true
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
		if !s.lingers {
			p.Close()
			continue
		}
		go func() {
			p.AwaitPeer(time.Now().Add(streamLinger))
			p.Close()
		}()
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
