package vhostvsock

import (
	"fmt"
	"net"
	"sync"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// backlogLength is how many connections of the guest wait for Accept before
// further ones are refused, per listener.
const backlogLength = 1024

// listener is the net.Listener of one host port.
type listener struct {
	dev  *Device
	addr Addr

	accepted chan *Conn
	done     chan struct{} // closed by shut

	mu     sync.Mutex // guards closed, and deliveries against it
	closed bool
}

// Listen makes connections of the guest to CID 2 and this port available. It can be
// called before the guest exists. Connections that wait for Accept are answered
// already; beyond 1024 of them, or without a listener, the guest is refused.
func (d *Device) Listen(port uint32) (net.Listener, error) {
	if port == unix.VMADDR_PORT_ANY {
		return nil, sys.Invalidf("listen on vsock %d:%d: name a port", hostCID, port)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, fmt.Errorf("listen on vsock %d:%d: %w", hostCID, port, net.ErrClosed)
	}
	if d.listeners[port] != nil {
		return nil, fmt.Errorf("listen on vsock %d:%d: %w", hostCID, port, unix.EADDRINUSE)
	}
	l := &listener{
		dev: d, addr: Addr{hostCID, port},
		accepted: make(chan *Conn, backlogLength), done: make(chan struct{}),
	}
	d.listeners[port] = l
	return l, nil
}

// Accept implements net.Listener. The connections are *Conn.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.addr, Err: net.ErrClosed}
	}
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.addr }

// Close implements net.Listener. Connections that nobody accepted are closed.
func (l *listener) Close() error {
	l.dev.mu.Lock()
	if l.dev.listeners[l.addr.Port] == l {
		delete(l.dev.listeners, l.addr.Port)
	}
	l.dev.mu.Unlock()
	l.shut()
	return nil
}

// shut ends Accept and closes what it has not handed out.
func (l *listener) shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	close(l.done)
	for {
		select {
		case c := <-l.accepted:
			_ = c.Close()
		default:
			return
		}
	}
}

// deliver queues a connection for Accept; false if the listener is full or closed.
func (l *listener) deliver(c *Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	select {
	case l.accepted <- c:
		return true
	default:
		return false
	}
}

// hasRoom says whether deliver would succeed. Only the loop delivers.
func (l *listener) hasRoom() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.closed && len(l.accepted) < cap(l.accepted)
}

// accept answers the guest's request for a connection.
func (s *session) accept(h *header) {
	key := flowKey{host: h.dstPort, guest: h.srcPort}
	s.dev.mu.Lock()
	l := s.dev.listeners[key.host]
	s.dev.mu.Unlock()
	if l == nil || !l.hasRoom() || s.full() {
		s.reset(key, h.socketType)
		return
	}
	fd, app, err := socketPair()
	if err != nil {
		s.warn("cannot accept a connection of the guest", "port", key.host, "error", err)
		s.reset(key, h.socketType)
		return
	}
	f := s.addFlow(key, fd, &endState{})
	f.peerAlloc, f.peerFwd = h.bufAlloc, h.fwdCnt
	err = s.open(f)
	if err == nil && !l.deliver(&Conn{unix: app, local: l.addr, remote: Addr{uint32(h.srcCID), h.srcPort}, end: f.end}) {
		err = net.ErrClosed
	}
	if err != nil {
		_ = app.Close()
		s.remove(f)
		s.reset(key, h.socketType)
		return
	}
	f.owe = oweResponse
	s.schedule(f)
}
