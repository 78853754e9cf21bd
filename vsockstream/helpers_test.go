package vsockstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must happen; generous, because a
// guest under emulation is slow.
const patience = 30 * time.Second

// checkLeaks fails the test if it leaves descriptors or goroutines behind. It
// must be called before anything else that registers cleanups.
func checkLeaks(t testing.TB) {
	t.Helper()
	fds, goroutines := openFDs(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			leaked := newFDs(fds, openFDs(t))
			n := runtime.NumGoroutine()
			if len(leaked) == 0 && n <= goroutines {
				return
			}
			if time.Now().After(end) {
				stacks := make([]byte, 1<<20)
				stacks = stacks[:runtime.Stack(stacks, true)]
				t.Errorf("%d leaked descriptors, such as %v; goroutines %d, were %d:\n%s", len(leaked), leaked[:min(5, len(leaked))], n, goroutines, stacks)
				return
			}
		}
	})
}

func openFDs(t testing.TB) map[string]string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	fds := make(map[string]string)
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && !strings.HasPrefix(target, "anon_inode:") && !strings.HasSuffix(target, "/fd") {
			fds[e.Name()] = target
		}
	}
	return fds
}

func newFDs(before, after map[string]string) (leaked []string) {
	for fd, target := range after {
		if before[fd] != target {
			leaked = append(leaked, fd+" -> "+target)
		}
	}
	return leaked
}

// requireRoot skips a test that needs root, unless the rung demands it.
func requireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if rung := os.Getenv("VMINIT_RUNG"); rung == "root" || rung == "vm" {
		t.Fatalf("not root although VMINIT_RUNG=%s", rung)
	}
	t.Skip("needs root")
}

// requireVsock skips a test that needs the vsock loopback transport, unless the
// test runs in a VM, whose init loads it.
func requireVsock(t testing.TB) {
	t.Helper()
	err := probeLoopback()
	if err == nil {
		return
	}
	if os.Getenv("VMINIT_RUNG") == "vm" {
		t.Fatalf("no vsock loopback although VMINIT_RUNG=vm: %v", err)
	}
	t.Skipf("needs the vsock loopback transport: %v", err)
}

func probeLoopback() error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Bind(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_LOCAL, Port: unix.VMADDR_PORT_ANY})
}

// eachTransport runs fn over unix sockets and, where there is one, over the
// vsock loopback.
func eachTransport(t *testing.T, fn func(t *testing.T, tr transport)) {
	t.Run("unix", func(t *testing.T) { checkLeaks(t); fn(t, transport{}) })
	t.Run("vsock", func(t *testing.T) { requireVsock(t); checkLeaks(t); fn(t, transport{vsock: true}) })
}

// transport makes listeners and connections of one family.
type transport struct{ vsock bool }

// listen returns a listener and the address to dial it by.
func (tr transport) listen(t testing.TB) (net.Listener, string) {
	t.Helper()
	addr := "unix://" + filepath.Join(t.TempDir(), "s")
	if tr.vsock {
		addr = "vsock://1:0"
	}
	l, err := ListenConfig{AllowLocal: true}.Listen(addr)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	if tr.vsock {
		addr = "vsock://1:" + l.Addr().String()[strings.LastIndexByte(l.Addr().String(), ':')+1:]
	}
	return l, addr
}

// pair returns two connected Conns. The far one, which is the test's, has a
// deadline, so that a test fails and does not hang.
func (tr transport) pair(t testing.TB) (near, far Conn) {
	t.Helper()
	defer func() { far.SetDeadline(time.Now().Add(2 * patience)) }()
	if !tr.vsock {
		return socketPair(t)
	}
	l, addr := tr.listen(t)
	far = dial(t, addr)
	c, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c.(Conn), far
}

func dial(t testing.TB, addr string) Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := Dial(ctx, addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func socketPair(t testing.TB) (near, far Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	var conns [2]Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		f.Close()
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		conns[i] = c.(Conn)
	}
	return conns[0], conns[1]
}

// pipe returns a pipe with both ends known to the poller.
func pipe(t testing.TB) (r, w *os.File) {
	t.Helper()
	var fds [2]int
	require.NoError(t, unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	r, w = os.NewFile(uintptr(fds[0]), "pipe r"), os.NewFile(uintptr(fds[1]), "pipe w")
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// pty returns a pseudo terminal in raw mode, both sides non-blocking.
func pty(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	require.NoError(t, control(master, func(fd int) error { return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0) }))
	slave = openSlave(t, master)
	require.NoError(t, control(slave, func(fd int) error {
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		tio.Oflag &^= unix.OPOST
		tio.Lflag &^= unix.ECHO | unix.ICANON
		return unix.IoctlSetTermios(fd, unix.TCSETS, tio)
	}))
	return master, slave
}

func openSlave(t testing.TB, master *os.File) *os.File {
	t.Helper()
	var n int
	require.NoError(t, control(master, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN)
		return err
	}))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	require.NoError(t, err)
	t.Cleanup(func() { slave.Close() })
	return slave
}

func startPump(t testing.TB, cfg PumpConfig) *Pump {
	t.Helper()
	p, err := NewPump(cfg)
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	require.NoError(t, p.Start())
	return p
}

func await[T any](t testing.TB, ch <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(patience):
		stacks := make([]byte, 1<<16)
		t.Fatalf("%s: still waiting after %v\n%s", what, patience, stacks[:runtime.Stack(stacks, true)])
	}
	return v
}

// pattern is n bytes in which every position is recognisable.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

// readAll collects what comes from r until its end.
func readAll(r io.Reader) <-chan []byte {
	ch := make(chan []byte, 1)
	go func() {
		b, err := io.ReadAll(r)
		if err != nil && !errors.Is(err, unix.EIO) {
			b = append(b, "error: "+err.Error()...)
		}
		ch <- b
	}()
	return ch
}
