package vsockstream

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/mdlayher/vsock"

	"vminit/internal/sys"
)

// maxConnectReply bounds the answer to CONNECT: "OK ", a 32-bit number, "\n",
// and room for a backend's refusal.
const maxConnectReply = 128

// Dial connects to "vsock://CID:PORT", "unix:///path" or, for a microVM whose
// vsock ends in a unix socket on the host, "vm+unix:///path?port=N": it sends
// "CONNECT N\n" and awaits "OK n\n" (Firecracker's convention). The end of ctx
// ends an attempt; it does not touch a connection that was returned.
func Dial(ctx context.Context, addr string) (Conn, error) {
	a, err := parseAddress(addr)
	if err != nil {
		return nil, err
	}
	var c Conn
	switch a.scheme {
	case schemeVsock:
		c, err = dialVsock(ctx, a)
	case schemeUnix:
		c, err = dialUnix(ctx, a.path)
	case schemeVMUnix:
		c, err = dialVMUnix(ctx, a)
	}
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", a, err)
	}
	return c, nil
}

func dialVsock(ctx context.Context, a address) (Conn, error) {
	if a.cid == anyCID || a.port == 0 {
		return nil, sys.Invalidf("a context id and a port are needed to dial")
	}
	c, err := vsock.DialContext(ctx, a.cid, a.port, nil)
	if err != nil {
		return nil, err // not (*vsock.Conn)(nil) in an interface
	}
	return c, nil
}

func dialUnix(ctx context.Context, path string) (Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

func dialVMUnix(ctx context.Context, a address) (Conn, error) {
	c, err := dialUnix(ctx, a.path)
	if err != nil {
		return nil, err
	}
	if err := withContext(ctx, c, func() error { return connectPort(c, a.port) }); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// connectPort asks the device behind c for a guest's port.
func connectPort(c io.ReadWriter, port uint32) error {
	if _, err := fmt.Fprintf(c, "CONNECT %d\n", port); err != nil {
		return fmt.Errorf("ask for port %d: %w", port, err)
	}
	line, err := readLine(c)
	if err != nil {
		return fmt.Errorf("await the answer to CONNECT %d: %w; does anything in the guest listen there?", port, err)
	}
	if word, _, _ := strings.Cut(line, " "); word != "OK" {
		return fmt.Errorf("the device refused port %d: %q", port, line)
	}
	return nil
}

// readLine reads to the first newline and not a byte further: what follows
// belongs to the guest's conversation.
func readLine(r io.Reader) (string, error) {
	var line [maxConnectReply]byte
	for n := range line {
		if _, err := io.ReadFull(r, line[n:n+1]); err != nil {
			return "", err
		}
		if line[n] == '\n' {
			return string(line[:n]), nil
		}
	}
	return "", fmt.Errorf("no newline in the first %d bytes", len(line))
}

// withContext runs fn, which reads and writes on c, until ctx ends. c has no
// deadline afterwards. The context's error wins over the timeout it caused.
func withContext(ctx context.Context, c net.Conn, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	expired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.SetDeadline(time.Unix(1, 0))
		close(expired)
	})
	err := fn()
	if !stop() {
		<-expired
		if err != nil {
			return fmt.Errorf("%w (%w)", ctx.Err(), err)
		}
	}
	if err != nil {
		return err
	}
	return c.SetDeadline(time.Time{})
}
