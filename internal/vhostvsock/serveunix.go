package vhostvsock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxConnectLine bounds "CONNECT 4294967295\r\n" generously, bytes.
	maxConnectLine = 64
	// connectTimeout bounds the client's wait with its line, and the dial.
	connectTimeout = 20 * time.Second
)

// ServeUnix serves Firecracker's vsock convention on the unix socket path: a client
// sends "CONNECT <port>\n", is answered "OK <local port>\n", and from there on the
// bytes are the connection's, half-closes included. If the dial fails the client's
// connection is closed without an answer.
func (d *Device) ServeUnix(ctx context.Context, path string) error {
	return ServeUnix(ctx, path, func(ctx context.Context, port uint32) (net.Conn, error) {
		return d.Dial(ctx, port)
	})
}

// ServeUnix is Device.ServeUnix before any dialer, real AF_VSOCK for instance. It
// creates the socket (mode 0600; a stale one is replaced), serves until ctx ends,
// ends the connections then, removes the socket and returns nil.
func ServeUnix(ctx context.Context, path string, dial func(ctx context.Context, port uint32) (net.Conn, error)) error {
	ln, err := listenUnix(path)
	if err != nil {
		return fmt.Errorf("serve vsock on a unix socket: %w", err)
	}
	var clients sync.WaitGroup
	defer clients.Wait()
	defer ln.Close()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	for {
		client, err := ln.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = client.Close()
			}
			return nil
		case IsResourceShortage(err):
			sleep(ctx, 50*time.Millisecond)
			continue
		case err != nil:
			return fmt.Errorf("serve vsock on %s: %w", path, err)
		}
		clients.Go(func() { serveClient(ctx, client, dial) })
	}
}

// serveClient serves one client to its end. It owns client.
func serveClient(ctx context.Context, client *net.UnixConn, dial func(context.Context, uint32) (net.Conn, error)) {
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { _ = client.Close() })
	defer stop()
	_ = client.SetDeadline(time.Now().Add(connectTimeout))
	port, early, err := readConnect(client)
	if err != nil {
		return
	}
	dialCtx, cancel := context.WithTimeout(ctx, connectTimeout)
	guest, err := dial(dialCtx, port)
	cancel()
	if err != nil {
		return
	}
	defer guest.Close()
	stopGuest := context.AfterFunc(ctx, func() { _ = guest.Close() })
	defer stopGuest()
	if _, err := fmt.Fprintf(client, "OK %d\n", localPort(guest)); err != nil {
		return
	}
	_ = client.SetDeadline(time.Time{})
	if len(early) > 0 {
		if _, err := guest.Write(early); err != nil {
			return
		}
	}
	join(client, guest)
}

// readConnect reads the client's line, and returns what the client sent after it.
func readConnect(r io.Reader) (port uint32, early []byte, err error) {
	buf := make([]byte, 0, maxConnectLine)
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if line, rest, found := bytes.Cut(buf, []byte("\n")); found {
			port, err := parseConnect(string(line))
			return port, rest, err
		}
		if err != nil {
			return 0, nil, err
		}
		if len(buf) == cap(buf) {
			return 0, nil, errors.New("no line end in the first bytes")
		}
	}
}

// parseConnect decodes "CONNECT <port>".
func parseConnect(line string) (uint32, error) {
	number, ok := strings.CutPrefix(strings.TrimSuffix(line, "\r"), "CONNECT ")
	if !ok {
		return 0, fmt.Errorf("%q is not CONNECT <port>", line)
	}
	port, err := strconv.ParseUint(number, 10, 32)
	return uint32(port), err
}

// localPort returns the number after the last colon of c's own address, 0 if there
// is none: vsock libraries and net agree on that form only.
func localPort(c net.Conn) uint64 {
	a := c.LocalAddr()
	if a == nil {
		return 0
	}
	s := a.String()
	port, _ := strconv.ParseUint(s[strings.LastIndexByte(s, ':')+1:], 10, 32)
	return port
}

// join moves bytes between two connections until both ways have ended, one has
// failed, or one peer has closed both. It leaves closing to its caller.
func join(client *net.UnixConn, guest net.Conn) {
	var ended atomic.Int32 // ways
	oneWay := func(dst, src net.Conn) {
		in, err := newSource(src)
		if err == nil {
			err = in.pump(dst)
		}
		if err == nil && ended.Add(1) < 2 {
			in.waitHangup()
		}
		expire(client, guest)
	}
	var back sync.WaitGroup
	back.Go(func() { oneWay(client, guest) })
	oneWay(guest, client)
	back.Wait()
}

// expire makes whatever is blocked on the connections return.
func expire(conns ...net.Conn) {
	for _, c := range conns {
		_ = c.SetDeadline(time.Unix(1, 0))
	}
}
