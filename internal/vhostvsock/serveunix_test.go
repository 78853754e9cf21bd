package vhostvsock

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// serveFake runs ServeUnix before a dialer: port 1 is given to serve, port 2 refuses.
func serveFake(t *testing.T, serve func(net.Conn)) (path string) {
	checkLeaks(t)
	dir := t.TempDir()
	var guests sync.WaitGroup
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	guests.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			guests.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	path = dir + "/vsock"
	go func() {
		served <- ServeUnix(ctx, path, func(ctx context.Context, port uint32) (net.Conn, error) {
			if port != 1 {
				return nil, unix.ECONNREFUSED
			}
			var d net.Dialer
			return d.DialContext(ctx, "tcp", ln.Addr().String())
		})
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-served)
		_, err := os.Stat(path)
		require.ErrorIs(t, err, os.ErrNotExist)
		ln.Close()
		guests.Wait()
	})
	waitSocket(t, path)
	return path
}

// waitSocket waits until somebody listens on path.
func waitSocket(t *testing.T, path string) {
	require.Eventually(t, func() bool {
		c, err := net.Dial("unix", path)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, 5*time.Second, time.Millisecond)
}

func unixDial(t *testing.T, path string) *net.UnixConn {
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	return c.(*net.UnixConn)
}

// unixConnect does the handshake.
func unixConnect(t *testing.T, path string, port uint32) *net.UnixConn {
	c := unixDial(t, path)
	_, err := fmt.Fprintf(c, "CONNECT %d\n", port)
	require.NoError(t, err)
	line, err := bufio.NewReaderSize(iotest.OneByteReader(c), 16).ReadString('\n')
	require.NoError(t, err)
	require.Regexp(t, `^OK \d+\n$`, line)
	return c
}

func TestServeUnixEcho(t *testing.T) {
	path := serveFake(t, func(c net.Conn) {
		_, _ = io.Copy(c, c)
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c)
	})
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())

	c := unixConnect(t, path, 1)
	const n = 5 << 20
	go func() {
		_, _ = io.Copy(c, stream(n))
		_ = c.CloseWrite()
	}()
	require.Equal(t, hashOf(t, stream(n)), hashOf(t, c))

	c = unixDial(t, path) // does not wait for the answer
	_, err = c.Write([]byte("CONNECT 1\nearly bird"))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	require.Regexp(t, `^OK \d+\nearly bird$`, string(readAll(t, c)))
}

func TestServeUnixRefuses(t *testing.T) {
	path := serveFake(t, func(net.Conn) {})
	for _, line := range []string{
		"CONNECT 2\n", "CONNECT 4294967296\n", "CONNECT -1\n", "CONNECT\n", "connect 1\n", "CONNECT 1 \n", "\n",
		"GET / HTTP/1.0\r\n", strings.Repeat("x", 1000), "CONNECT 1",
	} {
		c := unixDial(t, path)
		_, _ = c.Write([]byte(line))
		_ = c.CloseWrite()
		b, err := io.ReadAll(c)
		if err != nil {
			require.ErrorIs(t, err, unix.ECONNRESET, "%q", line)
		}
		require.Empty(t, b, "%q", line)
	}
}

func TestServeUnixHangup(t *testing.T) {
	ended := make(chan error, 1)
	path := serveFake(t, func(c net.Conn) {
		buf := make([]byte, 3)
		if _, err := io.ReadFull(c, buf); err != nil {
			ended <- err
			return
		}
		switch string(buf) {
		case "bye": // the guest closes: the client must hear although it does not write
		case "idl": // the client closes: so must the connection, with data on its way or not
			_, _ = io.Copy(io.Discard, c)
			for {
				if _, err := c.Write([]byte("x")); err != nil {
					break
				}
				time.Sleep(time.Millisecond)
			}
		}
		ended <- nil
	})
	c := unixConnect(t, path, 1)
	_, _ = c.Write([]byte("bye"))
	require.Empty(t, readAll(t, c))
	require.NoError(t, <-ended)

	c = unixConnect(t, path, 1)
	_, _ = c.Write([]byte("idl"))
	_ = c.Close()
	require.NoError(t, <-ended)

	unixConnect(t, path, 1) // open until the end of the test: ServeUnix ends it
	unixDial(t, path)
}

func TestServeUnixInUse(t *testing.T) {
	path := serveFake(t, func(net.Conn) {})
	err := ServeUnix(context.Background(), path, nil)
	require.ErrorIs(t, err, unix.EADDRINUSE)
}

// TestServeUnixDevice goes all the way to a guest.
func TestServeUnixDevice(t *testing.T) {
	d := serveDevice(t)
	path := t.TempDir() + "/vsock"
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- d.ServeUnix(ctx, path) }()
	defer func() {
		cancel()
		require.NoError(t, <-served)
	}()
	v := newDriver(t, d)
	waitSocket(t, path)

	c := unixDial(t, path)
	_, err := c.Write([]byte("CONNECT 9\nhi"))
	require.NoError(t, err)
	h, _ := v.expect(opRequest)
	require.EqualValues(t, 9, h.dstPort)
	g := packet(opResponse, h.dstPort, h.srcPort)
	v.send(g, nil)
	_, p := v.expect(opData)
	require.Equal(t, "hi", string(p))
	want := fmt.Sprintf("OK %d\nanswer", h.srcPort)
	v.send(with(g, opData, 0), []byte("answer"))
	b := make([]byte, len(want))
	require.NoError(t, errOf(readFull(c, b)))
	require.Equal(t, want, string(b))

	require.NoError(t, c.CloseWrite())
	h, _ = v.expect(opShutdown)
	require.EqualValues(t, shutSend, h.flags, "a half-close stays one")
	require.NoError(t, c.Close())
	h, _ = v.expect(opShutdown)
	require.EqualValues(t, shutBoth, h.flags, "a close is told without traffic")
	v.send(with(g, opReset, 0), nil)

	c = unixDial(t, path)
	_, err = c.Write([]byte("CONNECT 9\n"))
	require.NoError(t, err)
	h, _ = v.expect(opRequest)
	v.send(packet(opReset, h.dstPort, h.srcPort), nil)
	require.Empty(t, readAll(t, c))
}

func TestReadConnect(t *testing.T) {
	for _, one := range []bool{false, true} {
		var r io.Reader = strings.NewReader("CONNECT 1025\r\nabc")
		if one {
			r = iotest.OneByteReader(r)
		}
		port, early, err := readConnect(r)
		require.NoError(t, err)
		require.EqualValues(t, 1025, port)
		rest, _ := io.ReadAll(r)
		require.Equal(t, "abc", string(early)+string(rest))
	}
}

func FuzzReadConnect(f *testing.F) {
	f.Add([]byte("CONNECT 1\nx"))
	f.Add([]byte("CONNECT 99999999999\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		port, early, err := readConnect(r)
		if err != nil {
			require.True(t, len(early) == 0 || !errors.Is(err, io.EOF))
			return
		}
		line, rest, _ := bytes.Cut(in, []byte("\n"))
		want, err := parseConnect(string(line))
		require.NoError(t, err)
		require.Equal(t, want, port)
		left, _ := io.ReadAll(r)
		require.Equal(t, string(rest), string(early)+string(left))
	})
}
