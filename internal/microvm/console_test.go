package microvm

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func newTestConsole(t *testing.T) (c *console, guest net.Conn, dir string) {
	t.Helper()
	dir = t.TempDir()
	ours, guest := net.Pipe()
	c, err := newConsole(ours, filepath.Join(dir, consoleFile))
	require.NoError(t, err)
	t.Cleanup(func() { guest.Close(); <-c.done })
	return c, guest, dir
}

// serveConsole serves clients and tells when it has ended.
func serveConsole(t *testing.T, c *console, dir string) (net.Listener, <-chan error) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(dir, consoleSock))
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- c.serve(ln) }()
	return ln, served
}

func TestConsole(t *testing.T) {
	c, guest, dir := newTestConsole(t)
	require.Zero(t, c.firstByte())
	ln, served := serveConsole(t, c, dir)

	client, err := net.Dial("unix", ln.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Write([]byte("ls\n")) // also makes sure that it is connected
	require.NoError(t, err)
	buf := make([]byte, 64)
	n, err := guest.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "ls\n", string(buf[:n]))

	_, err = guest.Write([]byte("one\ntwo\x1b[31m\n"))
	require.NoError(t, err)
	n, err = io.ReadAtLeast(client, buf, 12)
	require.NoError(t, err)
	require.Equal(t, "one\ntwo\x1b[31m\n", string(buf[:n]))
	require.NotZero(t, c.firstByte())
	require.Equal(t, "\n  | two[31m", c.lastLines(1))

	require.NoError(t, guest.Close())
	_, err = client.Read(buf)
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, ln.Close())
	require.NoError(t, <-served)
	<-c.done
	log, err := os.ReadFile(filepath.Join(dir, consoleFile))
	require.NoError(t, err)
	require.Equal(t, "one\ntwo\x1b[31m\n", string(log))
}

func TestConsoleLogIsBounded(t *testing.T) {
	c, guest, dir := newTestConsole(t)
	line := []byte(strings.Repeat("x", 64<<10))
	for range 2*maxConsoleLog/len(line) + 5 {
		_, err := guest.Write(line)
		require.NoError(t, err)
	}
	require.NoError(t, guest.Close())
	<-c.done
	for _, name := range []string{consoleFile, consoleFile + ".1"} {
		fi, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.LessOrEqual(t, fi.Size(), int64(maxConsoleLog))
	}
	require.LessOrEqual(t, len(c.tail), 3*tailSize)
}

func TestSlowConsoleClientStopsNobody(t *testing.T) {
	c, guest, dir := newTestConsole(t)
	ln, err := net.Listen("unix", filepath.Join(dir, consoleSock))
	require.NoError(t, err)
	defer ln.Close()
	go c.serve(ln)
	client, err := net.Dial("unix", ln.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Write([]byte("x"))
	require.NoError(t, err)
	_, err = guest.Read(make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, guest.SetDeadline(time.Now().Add(10*time.Second)))
	for range 500 {
		_, err := guest.Write(make([]byte, 16<<10))
		require.NoError(t, err)
	}
}

// TestStoppedConsoleClientEnds: one that reads nothing does not keep the console
// from ending, and gets what there is room for.
func TestStoppedConsoleClientEnds(t *testing.T) {
	c, guest, dir := newTestConsole(t)
	ln, served := serveConsole(t, c, dir)
	client, err := net.Dial("unix", ln.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Write([]byte("x"))
	require.NoError(t, err)
	_, err = guest.Read(make([]byte, 1))
	require.NoError(t, err)
	for range 2 * clientBacklog { // more than a socket takes
		_, err := guest.Write(make([]byte, 16<<10))
		require.NoError(t, err)
	}
	require.NoError(t, guest.Close())
	require.NoError(t, ln.Close())
	select {
	case err := <-served:
		require.NoError(t, err)
	case <-time.After(10 * endGrace):
		t.Fatal("it still waits for its client")
	}
	rest, err := io.ReadAll(client)
	require.NoError(t, err)
	require.NotEmpty(t, rest)
}

// shortListener fails to accept for want of descriptors, and is closed then.
type shortListener struct {
	net.Listener
	fail int
}

func (l *shortListener) Accept() (net.Conn, error) {
	if l.fail == 0 {
		return nil, net.ErrClosed
	}
	l.fail--
	return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", unix.EMFILE)}
}

func TestDoorsOutliveShortage(t *testing.T) {
	c, _, _ := newTestConsole(t)
	for name, serve := range map[string]func(net.Listener) error{
		"console": c.serve,
		"port":    func(ln net.Listener) error { return forward(t.Context(), ln, RPCPort, nil) },
	} {
		ln := &shortListener{fail: 2}
		require.NoError(t, serve(ln), name)
		require.Zero(t, ln.fail, name)
	}
	_, err := accept(&shortListener{})
	require.ErrorIs(t, err, net.ErrClosed)
}
