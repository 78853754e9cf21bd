package vhostvsock

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// stream is testdata/guest's.
func stream(n uint64) io.Reader {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], n)
	return io.LimitReader(rand.NewChaCha8(seed), int64(n))
}

func hashOf(t testing.TB, r io.Reader) []byte {
	h := sha256.New()
	_, err := io.Copy(h, r)
	require.NoError(t, err)
	return h.Sum(nil)
}

// TestQEMU runs the device under a real guest.
func TestQEMU(t *testing.T) {
	m := newMachine(t, "-no-reboot")
	const size = 64 << 20

	t.Run("refused", func(t *testing.T) {
		_, err := m.dev.Dial(context.Background(), 4711)
		require.ErrorIs(t, err, unix.ECONNREFUSED)
	})
	t.Run("to guest", func(t *testing.T) {
		c := m.dial(1001)
		defer c.Close()
		_, err := io.Copy(c, stream(size))
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		require.Equal(t, hashOf(t, stream(size)), readAll(t, c))
	})
	t.Run("from guest", func(t *testing.T) {
		c := m.dial(1003)
		defer c.Close()
		require.NoError(t, binary.Write(c, binary.BigEndian, uint64(size)))
		require.Equal(t, hashOf(t, stream(size)), hashOf(t, c))
	})
	t.Run("echo through 4 KiB", func(t *testing.T) {
		c := m.dial(1005)
		defer c.Close()
		const size = 4 << 20
		go func() {
			_, _ = io.Copy(c, stream(size))
			_ = c.CloseWrite()
		}()
		require.Equal(t, hashOf(t, stream(size)), hashOf(t, c))
	})
	t.Run("1000 connections", func(t *testing.T) {
		var conns []*Conn
		for range 1000 {
			conns = append(conns, m.dial(1000))
		}
		var wg sync.WaitGroup
		for i, c := range conns {
			wg.Go(func() {
				n := uint64(10_000 + i)
				go func() {
					_, _ = io.Copy(c, stream(n))
					_ = c.CloseWrite()
				}()
				require.Equal(t, hashOf(t, stream(n)), hashOf(t, c))
				require.NoError(t, c.Close())
			})
		}
		wg.Wait()
	})
	t.Run("from guest 200 connections", func(t *testing.T) {
		l, err := m.dev.Listen(77)
		require.NoError(t, err)
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.Copy(c, c)
					_ = c.(*Conn).CloseWrite()
				}()
			}
		}()
		c := m.dial(1006)
		defer c.Close()
		require.NoError(t, binary.Write(c, binary.BigEndian, []uint32{77, 200, 50_000}))
		require.Equal(t, []byte{0, 0, 0, 0}, readAll(t, c))
	})
	t.Run("guest closes early", func(t *testing.T) {
		c := m.dial(1007)
		defer c.Close()
		var err error
		for err == nil {
			_, err = c.Write(make([]byte, 10_000))
		}
		require.ErrorIs(t, err, unix.EPIPE)
		require.Empty(t, readAll(t, c))
	})
	t.Run("host closes early", func(t *testing.T) {
		for range 5 {
			c := m.dial(1004)
			require.NoError(t, binary.Write(c, binary.BigEndian, uint64(1<<40)))
			require.NoError(t, errOf(io.ReadFull(c, make([]byte, 1_000_000))))
			require.NoError(t, c.Close())
		}
	})
	t.Run("guest does not read", func(t *testing.T) {
		c := m.dial(1008)
		defer c.Close()
		require.NoError(t, c.SetWriteDeadline(time.Now().Add(time.Second)))
		n, err := io.Copy(c, stream(1<<30))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		t.Logf("stopped after %d bytes", n)
		start := time.Now()
		m.echo(100_000)
		require.Less(t, time.Since(start), 5*time.Second, "others are not stopped")
		require.NoError(t, c.CloseWrite())
		m.dial(1009).Close()
		var counted uint64
		require.NoError(t, binary.Read(c, binary.BigEndian, &counted))
		require.GreaterOrEqual(t, counted, uint64(n))
	})
	t.Run("host does not read", func(t *testing.T) {
		c := m.dial(1003)
		defer c.Close()
		const size = 4 << 20
		require.NoError(t, binary.Write(c, binary.BigEndian, uint64(size)))
		time.Sleep(500 * time.Millisecond)
		m.echo(100_000)
		require.Equal(t, hashOf(t, stream(size)), hashOf(t, c))
	})
	t.Run("unix socket", func(t *testing.T) {
		path := m.dev.cfg.SocketPath + ".unix"
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- m.dev.ServeUnix(ctx, path) }()
		defer func() {
			cancel()
			require.NoError(t, <-served)
		}()
		waitSocket(t, path)
		c := unixConnect(t, path, 1000)
		const size = 8 << 20
		go func() {
			_, _ = io.Copy(c, stream(size))
			_ = c.CloseWrite()
		}()
		require.Equal(t, hashOf(t, stream(size)), hashOf(t, c))
		c = unixDial(t, path)
		_, err := c.Write([]byte("CONNECT 4711\n"))
		require.NoError(t, err)
		require.Empty(t, readAll(t, c))
	})
	t.Run("last words", func(t *testing.T) {
		c := m.dial(1012) // writes 100 KiB and powers off
		defer c.Close()
		<-m.exited
		b, err := io.ReadAll(c)
		require.NoError(t, err, "%d bytes", len(b))
		require.Len(t, b, 100<<10)
		_, err = m.dev.Dial(context.Background(), 1000)
		require.ErrorIs(t, err, unix.ENOTCONN)
	})
}

// echo sends n bytes around.
func (m *machine) echo(n uint64) {
	m.t.Helper()
	c := m.dial(1000)
	defer c.Close()
	go func() {
		_, _ = io.Copy(c, stream(n))
		_ = c.CloseWrite()
	}()
	require.Equal(m.t, hashOf(m.t, stream(n)), hashOf(m.t, c))
}

// TestQEMUAgain: resets of the guest, a pause, and the end of QEMU.
func TestQEMUAgain(t *testing.T) {
	m := newMachine(t)
	for range 2 {
		c := m.dial(1000)
		m.dial(1011).Close() // reset
		_, err := c.Read(make([]byte, 1))
		require.ErrorIs(t, err, unix.ECONNRESET)
		require.NoError(t, c.Close())
		m.waitReady()
		m.echo(100_000)
	}

	c := m.dial(1000)
	m.qmp(`{"execute":"stop"}`)
	require.Eventually(t, func() bool {
		_, err := m.dev.Dial(context.Background(), 1000)
		return errors.Is(err, unix.ENOTCONN)
	}, 5*time.Second, 10*time.Millisecond)
	require.NoError(t, errOf(c.Write([]byte("while paused"))))
	m.qmp(`{"execute":"cont"}`)
	b := make([]byte, 12)
	require.NoError(t, errOf(io.ReadFull(c, b)))
	require.Equal(t, "while paused", string(b))

	require.NoError(t, m.qemu.Process.Kill())
	_, err := c.Read(b)
	require.ErrorIs(t, err, unix.ECONNRESET)
	require.NoError(t, c.Close())
	<-m.exited
	m.start()
	m.echo(100_000)
}

// qmp sends QEMU a command.
func (m *machine) qmp(command string) {
	c, err := net.Dial("unix", m.qmpPath)
	require.NoError(m.t, err)
	defer c.Close()
	in := bufio.NewScanner(c)
	for _, line := range []string{`{"execute":"qmp_capabilities"}`, command} {
		_, err := c.Write([]byte(line + "\n"))
		require.NoError(m.t, err)
		for in.Scan() && !strings.Contains(in.Text(), `"return"`) {
		}
	}
}

// BenchmarkQEMU measures the way into a guest and back.
func BenchmarkQEMU(b *testing.B) {
	m := newMachine(b, "-no-reboot")
	const size = 128 << 20
	b.Run("to guest", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			c := m.dial(1002)
			_, err := io.CopyBuffer(struct{ io.Writer }{c}, io.LimitReader(zeros{}, size), make([]byte, 256<<10))
			require.NoError(b, err)
			require.NoError(b, c.CloseWrite())
			require.Len(b, readAll(b, c), 8)
			require.NoError(b, c.Close())
		}
	})
	b.Run("from guest", func(b *testing.B) {
		b.SetBytes(size)
		for b.Loop() {
			c := m.dial(1004)
			require.NoError(b, binary.Write(c, binary.BigEndian, uint64(size)))
			n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
			require.NoError(b, err)
			require.EqualValues(b, size, n)
			require.NoError(b, c.Close())
		}
	})
	b.Run("connect and one byte", func(b *testing.B) {
		for b.Loop() {
			c := m.dial(1000)
			require.NoError(b, errOf(c.Write([]byte{1})))
			require.NoError(b, errOf(io.ReadFull(c, make([]byte, 1))))
			require.NoError(b, c.Close())
		}
	})
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
