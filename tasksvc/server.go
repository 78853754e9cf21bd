package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/sirupsen/logrus"
	logslog "github.com/sirupsen/logrus/hooks/slog"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	// namespaceHeader is the metadata key containerd sends its namespace in.
	namespaceHeader  = "containerd-namespace-ttrpc"
	defaultNamespace = "default"

	// maxAnswer bounds an answer: ttrpc drops the connection over a frame of
	// more than 4 MiB of its own. The rest is for what it adds.
	maxAnswer = 4<<20 - 4<<10
)

// Server serves ttrpc connections. Every call goes through one interceptor,
// which reads the namespace, turns errors into statuses, survives panics, and
// logs method, ids, duration and code at debug level: nothing else of a
// request, which may hold secrets, is ever logged.
type Server struct {
	ttrpc    *ttrpc.Server
	log      *slog.Logger
	ttrpcLog *log.Entry     // where ttrpc's own lines go: to log, at debug level
	calls    sync.WaitGroup // connections being served
	answered func()         // see Answered

	mu        sync.Mutex // guards all below
	conns     map[*conn]struct{}
	connected uint64 // how many there have been
	listeners map[net.Listener]struct{}
	stopped   bool
}

// NewServer returns a server of the given services, each a Register method
// such as Bundles.Register. It panics if two have the same name.
func NewServer(logger *slog.Logger, services ...func(*ttrpc.Server)) (*Server, error) {
	s := &Server{log: logger, conns: map[*conn]struct{}{}, listeners: map[net.Listener]struct{}{}}
	srv, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(s.intercept))
	if err != nil {
		return nil, fmt.Errorf("ttrpc server: %w", err)
	}
	for _, register := range services {
		register(srv)
	}
	s.ttrpc = srv
	// ttrpc calls it an error when a peer goes away; here it is everyday life.
	lines := logrus.New()
	lines.SetOutput(io.Discard)
	lines.AddHook(logslog.NewHook(logger, &logslog.HookOptions{
		LevelMapper: func(logrus.Level) slog.Level { return slog.LevelDebug },
	}))
	s.ttrpcLog = logrus.NewEntry(lines)
	return s, nil
}

// Answered has fn called once, as soon as the first call has been answered to
// its last byte. It must be called before Serve and ServeConn.
func (s *Server) Answered(fn func()) { s.answered = sync.OnceFunc(fn) }

// Serve accepts connections from l until it fails or the server is shut down,
// which closes l; then the error is ttrpc.ErrServerClosed. Who may connect is
// for l to decide.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		l.Close()
		return ttrpc.ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()

	pause := time.Duration(0)
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			go guard(s.log, "connection", func() { s.ServeConn(ctx, c) })
		case s.isStopped():
			return ttrpc.ErrServerClosed
		case outOfResources(err):
			pause = min(max(2*pause, 10*time.Millisecond), time.Second)
			s.log.Error("accept", "on", l.Addr(), "error", err, "retry_in", pause)
			time.Sleep(pause)
		default:
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		}
	}
}

// outOfResources reports whether an accept may succeed later (accept(2)).
func outOfResources(err error) bool {
	for _, errno := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED, syscall.EINTR} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// ServeConn serves one connection, which it owns, until it ends or the server
// is shut down. Calls still being served then are cancelled.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) {
	c := newConn(nc)
	c.answered = s.answered
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		c.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.connected++
	s.calls.Add(1)
	s.mu.Unlock()
	defer s.calls.Done()
	defer func() {
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		s.log.Debug("disconnected", "peer", nc.RemoteAddr())
	}()
	s.log.Debug("connected", "peer", nc.RemoteAddr())

	// One ttrpc.Serve per connection, so that its calls can find it in ctx.
	ctx = log.WithLogger(context.WithValue(ctx, connKey{}, c), s.ttrpcLog)
	s.ttrpc.Serve(ctx, &oneConn{conn: c})
}

// open returns the connections there are.
func (s *Server) open() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.conns))
}

// Connections returns how many connections there are and how many there have
// been.
func (s *Server) Connections() (open int, ever uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns), s.connected
}

// intercept wraps every unary call.
func (s *Server) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (resp any, err error) {
	start := time.Now()
	var req any
	defer func() {
		if v := recover(); v != nil {
			resp, err = nil, recovered(s.log, info.FullMethod, v)
		}
		err = toStatus(err)
		s.logCall(ctx, info.FullMethod, req, time.Since(start), err)
	}()
	ctx, err = withNamespace(ctx)
	if err != nil {
		return nil, err
	}
	resp, err = method(ctx, func(into any) error {
		req = into
		return unmarshal(into)
	})
	if err != nil {
		return nil, err
	}
	if m, ok := resp.(proto.Message); ok {
		if n := proto.Size(m); n > maxAnswer {
			return nil, status.Errorf(codes.ResourceExhausted, "the answer has %d bytes; at most %d fit into a frame", n, maxAnswer)
		}
	}
	return resp, nil
}

// logCall logs a call at debug level.
func (s *Server) logCall(ctx context.Context, method string, req any, took time.Duration, err error) {
	if !s.log.Enabled(ctx, slog.LevelDebug) {
		return
	}
	attrs := []slog.Attr{slog.String("method", method)}
	if r, ok := req.(interface{ GetID() string }); ok {
		attrs = append(attrs, slog.String("id", r.GetID()))
	}
	if r, ok := req.(interface{ GetExecID() string }); ok && r.GetExecID() != "" {
		attrs = append(attrs, slog.String("exec", r.GetExecID()))
	}
	attrs = append(attrs, slog.Duration("took", took), slog.String("code", status.Code(err).String()))
	if err != nil {
		attrs = append(attrs, slog.String("error", err.Error()))
	}
	s.log.LogAttrs(ctx, slog.LevelDebug, "call", attrs...)
}

// guardStream runs the handler of a streaming call with what intercept does
// for unary ones; ttrpc offers no interceptor for streams.
func guardStream(logger *slog.Logger, method string, handler func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = recovered(logger, method, v)
		}
		err = toStatus(err)
	}()
	return handler()
}

// recovered logs a panic and returns what the caller is told of it.
func recovered(logger *slog.Logger, method string, v any) error {
	logger.Error("panic", "method", method, "panic", v, "stack", string(debug.Stack()))
	return status.Errorf(codes.Internal, "%s: the daemon failed: %v; its log has the stack", method, v)
}

type namespaceKey struct{}

// withNamespace puts the namespace the caller sent, or the default one, into
// the context.
func withNamespace(ctx context.Context) (context.Context, error) {
	ns, ok := ttrpc.GetMetadataValue(ctx, namespaceHeader)
	if !ok || ns == "" {
		ns = defaultNamespace
	}
	if err := validateID("namespace", ns); err != nil {
		return ctx, err
	}
	return context.WithValue(ctx, namespaceKey{}, ns), nil
}

// namespaceOf returns the namespace of a call.
func namespaceOf(ctx context.Context) string {
	if ns, ok := ctx.Value(namespaceKey{}).(string); ok {
		return ns
	}
	return defaultNamespace
}

// oneConn is a listener that accepts one connection and then waits for its end.
type oneConn struct {
	conn *conn
	done bool // used by Accept alone
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.done {
		l.done = true
		return l.conn, nil
	}
	<-l.conn.ended
	return nil, io.EOF
}

// Close is called by ttrpc's Close, while the connection is still needed.
func (l *oneConn) Close() error { return nil }

func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }
