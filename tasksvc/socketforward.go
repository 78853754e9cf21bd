package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	forwardapi "vminit/api/services/socketforward/v1"
	"vminit/internal/sys"
	"vminit/vsockstream"
)

const (
	maxForwards     = 1024 // sockets
	maxForwarded    = 4096 // connections at once
	maxSocketPath   = 107  // sun_path without its NUL, unix(7)
	maxForwardID    = 1024 // bytes
	maxForwardText  = 1024 // bytes of the host's reason for not connecting
	forwardDeadline = 30 * time.Second
)

// SocketForward is the service of that name: unix sockets in the guest whose
// connections are carried to the host, each by a stream of its own. It owns the
// sockets and the connections. Safe for concurrent use.
//
// A host may run one Accept for all its forwards or one for each container. A
// connection is offered to one of them after the other, beginning with the one
// that took the last connection to that socket, until one takes it. ttrpc does
// not tell when a host has given an Accept up, so one that does not answer is
// passed over, too, and from then on asked last.
type SocketForward struct {
	hub     *vsockstream.Hub
	framing vsockstream.Framing
	log     *slog.Logger
	timeout time.Duration // forwardDeadline

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	run    sync.WaitGroup // accept loops and connections

	mu        sync.Mutex // guards all below
	closed    bool
	forwards  map[string]*forward // by forward id
	accepters map[*accepter]struct{}
	changed   chan struct{}          // closed when accepters changes
	pending   map[string]chan string // by stream id: the host's answer, "" for yes
	open      int                    // connections
}

// forward is one socket.
type forward struct {
	id, path string
	listener net.Listener
	last     *accepter // took the last connection; guarded by SocketForward.mu
}

// NewSocketForward returns the service without sockets. hub is where the host opens
// the streams, whose ids have the form that framing carries.
func NewSocketForward(hub *vsockstream.Hub, framing vsockstream.Framing, log *slog.Logger) *SocketForward {
	ctx, cancel := context.WithCancel(context.Background())
	return &SocketForward{hub: hub, framing: framing, log: log, timeout: forwardDeadline, ctx: ctx, cancel: cancel, forwards: map[string]*forward{},
		accepters: map[*accepter]struct{}{}, changed: make(chan struct{}), pending: map[string]chan string{}}
}

// Register adds the service to srv.
func (f *SocketForward) Register(srv *ttrpc.Server) {
	forwardapi.RegisterTTRPCSocketForwardService(srv, f)
}

// Close ends all Accepts and connections and removes the sockets.
func (f *SocketForward) Close() {
	f.mu.Lock()
	f.closed = true
	for _, fw := range f.forwards {
		fw.listener.Close()
	}
	f.mu.Unlock()
	f.cancel()
	f.run.Wait()
}

// Bind implements SocketForward.Bind.
func (f *SocketForward) Bind(_ context.Context, r *forwardapi.BindRequest) (_ *emptypb.Empty, err error) {
	for _, s := range r.Sockets {
		if err := checkForward(s); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var back undo
	defer func() {
		if err != nil {
			back.run()
		}
	}()
	for _, s := range r.Sockets {
		made, err := f.bind(s.ForwardId, s.SocketPath)
		if err != nil {
			return nil, err
		}
		if made != nil {
			back.add(func() {
				made.listener.Close()
				delete(f.forwards, made.id)
			})
		}
	}
	return empty, nil
}

func checkForward(s *forwardapi.Socket) error {
	if s.ForwardId == "" || len(s.ForwardId) > maxForwardID {
		return sys.Invalidf("forward id %.64q: it needs 1 to %d bytes", s.ForwardId, maxForwardID)
	}
	if !filepath.IsAbs(s.SocketPath) || len(s.SocketPath) > maxSocketPath || strings.ContainsRune(s.SocketPath, 0) || filepath.Clean(s.SocketPath) != s.SocketPath {
		return sys.Invalidf("socket path %.128q of forward %.64q: it must be absolute, clean and at most %d bytes long", s.SocketPath, s.ForwardId, maxSocketPath)
	}
	return nil
}

// bind makes one socket. It returns nil for one that is there already. The
// caller holds mu.
func (f *SocketForward) bind(id, path string) (*forward, error) {
	if f.closed {
		return nil, sys.Mark(sys.ErrState, errors.New("the daemon is shutting down"))
	}
	if old := f.forwards[id]; old != nil {
		if old.path == path {
			return nil, nil
		}
		return nil, sys.Mark(sys.ErrExists, fmt.Errorf("forward %.64q is bound to %s already", id, old.path))
	}
	if len(f.forwards) >= maxForwards {
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("forward %.64q: there are %d forwards already", id, maxForwards))
	}
	l, err := listenForward(path)
	if err != nil {
		return nil, fmt.Errorf("forward %.64q: %w", id, err)
	}
	fw := &forward{id: id, path: path, listener: l}
	f.forwards[id] = fw
	f.run.Go(func() { guard(f.log, "socket forward", func() { f.accept(fw) }) })
	return fw, nil
}

// listenForward listens on a unix socket that everybody may connect to: in a
// user namespace a container's root is nobody in particular.
func listenForward(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if errors.Is(err, unix.EADDRINUSE) {
		if !isStaleSocket(path) {
			return nil, sys.Mark(sys.ErrExists, fmt.Errorf("%s exists already and is no socket left behind", path))
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale socket: %w", err)
		}
		l, err = net.Listen("unix", path)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// isStaleSocket reports whether path is a socket that nobody listens on.
func isStaleSocket(path string) bool {
	if st, err := os.Lstat(path); err != nil || st.Mode().Type() != os.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

// accept is the goroutine of one socket.
func (f *SocketForward) accept(fw *forward) {
	for {
		c, err := fw.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			f.log.Error("accept on a forwarded socket", "path", fw.path, "error", err)
			select {
			case <-time.After(100 * time.Millisecond): // out of descriptors, as a rule
				continue
			case <-f.ctx.Done():
				return
			}
		}
		f.mu.Lock()
		full := f.open >= maxForwarded
		if !full {
			f.open++
		}
		f.mu.Unlock()
		if full {
			f.log.Warn("connection to a forwarded socket refused: there are too many", "path", fw.path, "open", maxForwarded)
			c.Close()
			continue
		}
		f.run.Go(func() {
			defer func() {
				f.mu.Lock()
				f.open--
				f.mu.Unlock()
			}()
			defer c.Close()
			guard(f.log, "forwarded connection", func() {
				if err := f.carry(fw, c.(*net.UnixConn)); err != nil && f.ctx.Err() == nil {
					f.log.Warn("forwarded connection", "path", fw.path, "error", err)
				}
			})
		})
	}
}

// carry carries one connection to the host, to its end.
func (f *SocketForward) carry(fw *forward, c *net.UnixConn) error {
	stream, err := f.connect(fw)
	if err != nil {
		return err
	}
	defer stream.Close()
	_ = vsockstream.Proxy(f.ctx, c, stream) // how it ends is between the two peers
	return nil
}
