package vhostvsock

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// echoGuest is a small vsock implementation: every connection to it is echoed,
// half-closes included, within the credit of both sides.
type echoGuest struct {
	v     *driver
	alloc uint32 // receive buffer of each connection
	conns map[flowKey]*echoConn
	rst   int // received
}

type echoConn struct {
	alloc, fwd uint32 // the host's
	sent, got  uint32
	echo       []byte
	heard      uint32 // shutdown flags
	told       bool
}

// run serves until stop is closed and no connection is left, or nothing happens for
// long.
func (e *echoGuest) run(stop <-chan struct{}) error {
	for idle := 0; idle < 500; idle++ {
		select {
		case <-stop:
			if len(e.conns) == 0 {
				return nil
			}
		default:
		}
		h, p, ok := e.v.next(20 * time.Millisecond)
		if !ok {
			continue
		}
		idle = 0
		if err := e.handle(h, p); err != nil {
			return err
		}
	}
	return fmt.Errorf("nothing happens, %d connections are left", len(e.conns))
}

func (e *echoGuest) handle(h header, p []byte) error {
	key := flowKey{host: h.srcPort, guest: h.dstPort}
	c := e.conns[key]
	reply := packet(opReset, key.guest, key.host)
	reply.bufAlloc = e.alloc
	switch {
	case h.op == opRequest:
		c = &echoConn{}
		e.conns[key] = c
		reply.op = opResponse
	case h.op == opReset:
		e.rst++
		delete(e.conns, key)
		return nil
	case c == nil:
		return e.v.trySend(reply, nil)
	}
	c.alloc, c.fwd = h.bufAlloc, h.fwdCnt
	c.got += uint32(len(p))
	c.echo = append(c.echo, p...)
	reply.fwdCnt = c.got - uint32(len(c.echo))
	if h.op == opRequest {
		return e.v.trySend(reply, nil)
	}
	if h.op == opShutdown {
		if c.heard |= h.flags; c.heard == shutBoth {
			delete(e.conns, key)
			return e.v.trySend(reply, nil)
		}
	}
	return e.echo(key, c, reply)
}

// echo sends what the host has room for.
func (e *echoGuest) echo(key flowKey, c *echoConn, reply header) error {
	for len(c.echo) > 0 && c.sent-c.fwd < min(c.alloc, e.alloc) {
		n := min(uint32(len(c.echo)), min(c.alloc, e.alloc)-(c.sent-c.fwd), 60_000)
		p := c.echo[:n]
		c.echo = c.echo[n:]
		c.sent += n
		reply.op, reply.fwdCnt = opData, c.got-uint32(len(c.echo))
		if err := e.v.trySend(reply, p); err != nil {
			return err
		}
	}
	if c.heard&shutSend != 0 && len(c.echo) == 0 && !c.told {
		c.told = true
		reply.op, reply.flags = opShutdown, shutSend
		return e.v.trySend(reply, nil)
	}
	return nil
}

// TestStress: many connections at once through small buffers.
func TestStress(t *testing.T) {
	d := serveDevice(t)
	e := &echoGuest{v: newDriver(t, d), alloc: 10_000, conns: map[flowKey]*echoConn{}}
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- e.run(stop) }()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for round := range 4 {
				n := uint64(1 + i*i*round*100)
				c, err := d.Dial(context.Background(), uint32(i))
				if err != nil {
					t.Errorf("dial: %v", err)
					return
				}
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				written := make(chan struct{})
				go func() {
					defer close(written)
					_, _ = io.Copy(c, stream(n))
					if i%2 == 0 {
						_ = c.CloseWrite()
					}
				}()
				got := sha256.New()
				if _, err := io.Copy(got, io.LimitReader(c, int64(n))); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
				if string(got.Sum(nil)) != string(hashOf(t, stream(n))) {
					t.Errorf("connection %d: %d bytes came back changed", i, n)
				}
				<-written
				if i%2 == 0 {
					if m, err := c.Read(make([]byte, 1)); m != 0 || err != io.EOF {
						t.Errorf("connection %d: %d, %v after its end", i, m, err)
					}
				}
				_ = c.Close()
			}
		})
	}
	wg.Wait()
	close(stop)
	require.NoError(t, <-ended)
	require.Empty(t, e.conns)
	require.Zero(t, e.rst)
}
