package vsockstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/vsock"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

func TestListenUnix(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "s")
	addr := "unix://" + path

	l, err := ListenConfig{}.Listen(addr)
	require.NoError(t, err)
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode())

	_, err = ListenConfig{}.Listen(addr)
	require.ErrorIs(t, err, sys.ErrExists, "a live socket is not stale")
	// The probe of that attempt is in the queue: take it out.
	c, err := l.Accept()
	require.NoError(t, err)
	c.Close()

	far := dial(t, addr)
	c, err = l.Accept()
	require.NoError(t, err)
	defer c.Close()
	require.Implements(t, (*Conn)(nil), c)
	far.Write([]byte("x"))
	far.CloseWrite()
	require.Equal(t, "x", string(await(t, readAll(c), "byte")))

	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	require.NoFileExists(t, path)
}

func TestListenUnixStale(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "s")
	ul, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	ul.SetUnlinkOnClose(false)
	ul.Close()
	require.FileExists(t, path)
	l, err := ListenConfig{}.Listen("unix://" + path)
	require.NoError(t, err)
	l.Close()

	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = ListenConfig{}.Listen("unix://" + path)
	require.ErrorIs(t, err, sys.ErrExists)
	require.FileExists(t, path)
	_, err = ListenConfig{}.Listen("unix:///nonexistent/dir/s")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = ListenConfig{}.Listen("vm+unix:///a?port=1")
	require.ErrorIs(t, err, sys.ErrInvalid)
}

// TestMain lets a test run this binary as another user: it dials the socket it
// is given and says how many bytes it could read before the end.
func TestMain(m *testing.M) {
	if path := os.Getenv("VSOCKSTREAM_TEST_DIAL"); path != "" {
		c, err := net.Dial("unix", path)
		if err != nil {
			os.Stdout.WriteString(err.Error())
			os.Exit(1)
		}
		c.SetDeadline(time.Now().Add(patience))
		b, err := io.ReadAll(c)
		if err != nil && !errors.Is(err, unix.ECONNRESET) {
			os.Stdout.WriteString(err.Error())
			os.Exit(1)
		}
		os.Stdout.Write(b)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestCloseUnixReplaced: a listener does not remove the socket of another that has
// come in its place.
func TestCloseUnixReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := ListenConfig{}.Listen("unix://" + path)
	require.NoError(t, err)
	require.NoError(t, os.Remove(path))
	second, err := ListenConfig{}.Listen("unix://" + path)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	require.FileExists(t, path)
	require.NoError(t, second.Close())
	require.NoFileExists(t, path)
}

// TestUnixPeer: another user's connection is closed at once, and Accept goes on.
func TestUnixPeer(t *testing.T) {
	requireRoot(t)
	checkLeaks(t)
	dir, err := os.MkdirTemp("/tmp", "peer")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "s")
	var log bytes.Buffer
	l, err := ListenConfig{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Listen("unix://" + path)
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Chmod(path, 0o777)) // so that only the credentials decide

	// A copy of this binary where that user can reach it.
	self, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "test"), self, 0o755))

	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Write([]byte("welcome"))
			c.Close()
		}
		served <- err
	}()
	for _, c := range []struct {
		uid  uint32
		want string
	}{{65534, ""}, {65533, ""}, {0, "welcome"}} {
		cmd := exec.Command(filepath.Join(dir, "test"))
		cmd.Dir = "/"
		cmd.Env = []string{"VSOCKSTREAM_TEST_DIAL=" + path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.uid}}
		out, err := cmd.Output()
		require.NoError(t, err, string(out))
		require.Equal(t, c.want, string(out), "uid %d", c.uid)
	}
	require.NoError(t, await(t, served, "accept"))
	require.Contains(t, log.String(), "65534")
}

// TestRefusalLog: a peer that connects in a loop cannot fill the log.
func TestRefusalLog(t *testing.T) {
	var log bytes.Buffer
	l := newListener(&failingListener{}, nil, slog.New(slog.NewTextHandler(&log, nil)))
	for range 100 {
		l.logRefusal(unix.EPERM)
	}
	require.Equal(t, 1, strings.Count(log.String(), "\n"))
	l.lastLog = l.lastLog.Add(-2 * refusalLogEvery)
	l.logRefusal(unix.EPERM)
	require.Contains(t, log.String(), "unlogged=99")
}

func TestVsockPeerRule(t *testing.T) {
	for cid, want := range map[uint32]struct{ plain, local bool }{
		vsock.Host:       {true, true},
		vsock.Local:      {false, true},
		vsock.Hypervisor: {false, false},
		3:                {false, false},
		anyCID:           {false, false},
	} {
		c := peerConn{cid: cid}
		require.Equal(t, want.plain, ListenConfig{}.checkVsock(c) == nil, cid)
		require.Equal(t, want.local, ListenConfig{AllowLocal: true}.checkVsock(c) == nil, cid)
	}
	near, _ := socketPair(t)
	require.Error(t, ListenConfig{}.checkVsock(near))
	require.Error(t, checkUnix(peerConn{}))
}

type peerConn struct {
	net.Conn
	cid uint32
}

func (c peerConn) RemoteAddr() net.Addr { return &vsock.Addr{ContextID: c.cid, Port: 1} }

// TestVsockLocalRefused: a process in the guest finds the door closed.
func TestVsockLocalRefused(t *testing.T) {
	requireVsock(t)
	checkLeaks(t)
	l, err := ListenConfig{}.Listen("vsock://1:0")
	require.NoError(t, err)
	accepted := make(chan error, 1)
	go func() { _, err := l.Accept(); accepted <- err }()
	a := l.Addr().(*vsock.Addr)
	for range 3 {
		c := dial(t, address{scheme: schemeVsock, cid: a.ContextID, port: a.Port}.String())
		c.SetDeadline(time.Now().Add(patience))
		_, err := c.Read(make([]byte, 1))
		require.Error(t, err)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	select {
	case err := <-accepted:
		t.Fatalf("Accept returned: %v", err)
	default:
	}
	l.Close()
	require.ErrorIs(t, await(t, accepted, "Accept"), net.ErrClosed)
}

// failingListener gives passing errors, then a connection.
type failingListener struct {
	net.Listener
	errs []error
	conn net.Conn
}

func (l *failingListener) Accept() (net.Conn, error) {
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, err
	}
	return l.conn, nil
}
func (*failingListener) Addr() net.Addr { return &net.UnixAddr{} }
func (*failingListener) Close() error   { return nil }

func TestAcceptOutlivesPassingErrors(t *testing.T) {
	near, _ := socketPair(t)
	wrap := func(errno error) error {
		return &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", errno)}
	}
	inner := &failingListener{conn: near, errs: []error{
		wrap(unix.ECONNABORTED), wrap(unix.EMFILE), wrap(unix.ENFILE), wrap(unix.ENOBUFS), wrap(unix.EINTR), wrap(unix.ENOMEM),
	}}
	l := newListener(inner, func(net.Conn) error { return nil }, loggerOr(nil))
	c, err := l.Accept()
	require.NoError(t, err)
	require.Equal(t, near, c)

	inner.errs = []error{wrap(unix.EBADF)}
	_, err = l.Accept()
	require.ErrorIs(t, err, unix.EBADF)

	for range 100 {
		inner.errs = append(inner.errs, wrap(unix.EMFILE))
	}
	ended := make(chan error, 1)
	go func() { _, err := l.Accept(); ended <- err }()
	time.Sleep(20 * time.Millisecond)
	l.Close()
	require.ErrorIs(t, await(t, ended, "Accept"), net.ErrClosed)
}

func TestDialErrors(t *testing.T) {
	checkLeaks(t)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, addr := range []string{"vsock://any:1", "vsock://2:0", "nonsense"} {
		_, err := Dial(ctx, addr)
		require.ErrorIs(t, err, sys.ErrInvalid, addr)
	}
	_, err := Dial(ctx, "unix:///nonexistent")
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestDialVMUnix speaks Firecracker's convention with a device of our own.
func TestDialVMUnix(t *testing.T) {
	checkLeaks(t)
	path := filepath.Join(t.TempDir(), "vm")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	answers := make(chan string, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			line, err := readLine(c)
			if err != nil || line != "CONNECT 1025" {
				c.Write([]byte("what? " + line))
			}
			if a := <-answers; a != "silence" {
				io.WriteString(c, a)
				c.Close()
			} else {
				defer c.Close()
			}
		}
	}()
	addr := "vm+unix://" + path + "?port=1025"

	answers <- "OK 1073741824\nfirst bytes"
	c := dial(t, addr)
	require.Equal(t, "first bytes", string(await(t, readAll(c), "bytes")))

	for answer, want := range map[string]string{
		"":                       "does anything in the guest listen there",
		"NO\n":                   `"NO"`,
		strings.Repeat("x", 200): "no newline",
	} {
		answers <- answer
		_, err := Dial(context.Background(), addr)
		require.ErrorContains(t, err, want)
	}
	answers <- "silence"
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err = Dial(ctx, addr)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func FuzzReadLine(f *testing.F) {
	f.Add([]byte("OK 1\nrest"))
	f.Add([]byte("no newline"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		line, err := readLine(r)
		end := bytes.IndexByte(b, '\n')
		if end < 0 || end >= maxConnectReply {
			require.Error(t, err)
			return
		}
		require.NoError(t, err)
		require.Equal(t, string(b[:end]), line)
		require.Equal(t, len(b)-end-1, r.Len())
	})
}
