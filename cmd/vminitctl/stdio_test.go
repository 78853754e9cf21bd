package main

import (
	"context"
	"io"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pipeConn is a stream in memory.
type pipeConn struct{ net.Conn }

func (pipeConn) CloseWrite() error                     { return nil }
func (pipeConn) SyscallConn() (syscall.RawConn, error) { return nil, syscall.ENOTSUP }

func pipeStdio() (s *stdio, guest net.Conn) {
	ours, guest := net.Pipe()
	return &stdio{out: pipeConn{ours}, ended: make(chan struct{}), broken: make(chan struct{})}, guest
}

// Output is waited for as long as its reader takes, and not much longer if it is
// the guest that keeps it back.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, guest := pipeStdio()
		reader, stdout := io.Pipe()
		s.start(stdout, io.Discard)
		go func() {
			_, _ = guest.Write([]byte("slowly read"))
			guest.Close()
		}()
		go func() {
			time.Sleep(time.Hour)
			_, _ = io.ReadAll(reader)
		}()
		began := time.Now()
		require.NoError(t, s.drain(t.Context()))
		require.Equal(t, time.Hour, time.Since(began))
		code, err := s.status(3)
		require.NoError(t, err)
		require.Equal(t, 3, code)
		stdout.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		s, guest := pipeStdio()
		s.start(io.Discard, io.Discard)
		began := time.Now()
		require.ErrorContains(t, s.drain(t.Context()), "some of it may be missing")
		require.Less(t, time.Since(began), 2*drainTimeout)
		guest.Close()
	})
}

// A process whose reader is gone gets the signal that a pipe would have made, and
// then the one that none can refuse.
func TestBroken(t *testing.T) {
	for _, lost := range []error{unix.EPIPE, unix.ENOSPC} {
		testBroken(t, lost)
	}
}

func testBroken(t *testing.T, lost error) {
	synctest.Test(t, func(t *testing.T) {
		s, guest := pipeStdio()
		reader, stdout := io.Pipe()
		s.start(stdout, io.Discard)
		ctx, cancel := context.WithCancel(t.Context())
		signals := make(chan unix.Signal, 8)
		go s.endBroken(ctx, func(sig unix.Signal) { signals <- sig })
		time.Sleep(time.Hour)
		require.Empty(t, signals)
		code, err := s.status(0)
		require.NoError(t, err)
		require.Zero(t, code)
		reader.CloseWithError(lost)
		_, err = guest.Write([]byte("x"))
		require.NoError(t, err)
		require.Equal(t, unix.SIGPIPE, <-signals)
		require.Equal(t, unix.SIGKILL, <-signals)
		_, err = guest.Write([]byte("thrown away"))
		require.NoError(t, err)
		code, err = s.status(1)
		if lost == unix.EPIPE {
			require.NoError(t, err)
			require.Equal(t, 141, code)
		} else {
			require.ErrorIs(t, err, lost)
		}
		guest.Close()
		require.NoError(t, s.drain(ctx))
		cancel()
	})
}

// A stream that breaks off is not a reader that is gone.
func TestStreamBreaksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, guest := pipeStdio()
		s.out = pipeConn{failing{s.out}}
		s.start(io.Discard, io.Discard)
		require.NoError(t, s.drain(t.Context()))
		code, err := s.status(5)
		require.NoError(t, err)
		require.Equal(t, 5, code)
		guest.Close()
	})
}

// failing is a connection that has been reset.
type failing struct{ net.Conn }

func (failing) Read([]byte) (int, error) { return 0, unix.ECONNRESET }
