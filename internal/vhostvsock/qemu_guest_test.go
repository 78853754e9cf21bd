package vhostvsock

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"io"
	"math/rand/v2"
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
		require.NoError(t, binary.Write(c, binary.BigEndian, []uint32{77, 200, 300_000}))
		require.Equal(t, []byte{0, 0, 0, 0}, readAll(t, c))
	})
	t.Run("throughput", func(t *testing.T) {
		const size = 256 << 20
		c := m.dial(1002)
		start := time.Now()
		_, err := io.CopyBuffer(struct{ io.Writer }{c}, io.LimitReader(zeros{}, size), make([]byte, 256<<10))
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		require.Len(t, readAll(t, c), 8)
		t.Logf("to guest: %.0f MB/s", size/1e6/time.Since(start).Seconds())
		_ = c.Close()

		c = m.dial(1004)
		start = time.Now()
		require.NoError(t, binary.Write(c, binary.BigEndian, uint64(size)))
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c}, make([]byte, 256<<10))
		require.NoError(t, err)
		require.EqualValues(t, size, n)
		t.Logf("from guest: %.0f MB/s", size/1e6/time.Since(start).Seconds())
		_ = c.Close()

		start = time.Now()
		const times = 200
		for range times {
			c := m.dial(1000)
			_, err := c.Write([]byte{1})
			require.NoError(t, err)
			_, err = io.ReadFull(c, make([]byte, 1))
			require.NoError(t, err)
			_ = c.Close()
		}
		t.Logf("connection and one byte: %v", time.Since(start)/times)
	})
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
