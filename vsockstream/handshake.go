package vsockstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"vminit/internal/sys"
)

// evictAge is how old a handshake must be before a newcomer may take its
// place when there are too many. A healthy one takes a round trip.
const evictAge = time.Second

// handshake is a connection whose id has not been echoed yet.
type handshake struct {
	conn  Conn
	since time.Time
}

// Serve accepts connections from l and performs the guest's half of the
// handshake on each, in a goroutine and with a deadline of its own: a peer that
// says nothing stops nobody. When HubConfig.MaxHandshakes are under way the
// oldest gives way to a newcomer. Serve returns nil when ctx ends or the hub is
// closed, else the error of Accept; l is closed in every case. Several Serves
// may run at once.
func (h *Hub) Serve(ctx context.Context, l net.Listener) error {
	defer l.Close()
	if !h.enter(l) {
		return sys.Mark(sys.ErrState, errors.New("the stream hub is closed"))
	}
	defer h.leave(l)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	for {
		accepted, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || h.isClosed() {
				return nil
			}
			return fmt.Errorf("accept streams on %v: %w", l.Addr(), err)
		}
		c, ok := accepted.(Conn)
		if !ok {
			accepted.Close()
			return fmt.Errorf("accept streams on %v: a %T cannot be half-closed", l.Addr(), accepted)
		}
		if hs := h.admit(c); hs != nil {
			go h.run(hs)
		}
	}
}

// enter registers a Serve so that Close can end it and await it.
func (h *Hub) enter(l net.Listener) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.listeners[l] = struct{}{}
	h.wg.Add(1)
	return true
}

func (h *Hub) leave(l net.Listener) {
	h.mu.Lock()
	delete(h.listeners, l)
	h.mu.Unlock()
	h.wg.Done()
}

func (h *Hub) isClosed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closed
}

// admit registers a handshake for c once there is room. It waits at most
// evictAge, after which the oldest handshake is evicted. nil means that the
// hub was closed, and c with it.
func (h *Hub) admit(c Conn) *handshake {
	for {
		hs, wait := h.tryAdmit(c)
		if wait == 0 {
			return hs
		}
		t := time.NewTimer(wait)
		select {
		case <-h.slot:
		case <-t.C:
		case <-h.done:
		}
		t.Stop()
	}
}

// tryAdmit registers a handshake for c, or says how long to wait for one that
// may be evicted. The caller owes run (or the hub was closed: nil and 0).
func (h *Hub) tryAdmit(c Conn) (hs *handshake, wait time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		c.Close()
		return nil, 0
	}
	if len(h.handshakes) >= h.cfg.MaxHandshakes {
		oldest := h.oldestLocked()
		if wait := evictAge - time.Since(oldest.since); wait > 0 {
			return nil, wait
		}
		delete(h.handshakes, oldest)
		oldest.conn.Close() // its run notices
	}
	hs = &handshake{conn: c, since: time.Now()}
	h.handshakes[hs] = struct{}{}
	h.wg.Add(1)
	return hs, 0
}

func (h *Hub) oldestLocked() *handshake {
	var oldest *handshake
	for hs := range h.handshakes {
		if oldest == nil || hs.since.Before(oldest.since) {
			oldest = hs
		}
	}
	return oldest
}

// run performs one handshake; the connection becomes an unclaimed stream or is
// closed.
func (h *Hub) run(hs *handshake) {
	defer h.wg.Done()
	id, err := h.shake(hs)
	h.mu.Lock()
	_, mine := h.handshakes[hs]
	evicted := !mine && !h.closed
	delete(h.handshakes, hs)
	h.mu.Unlock()
	select {
	case h.slot <- struct{}{}:
	default:
	}
	if err == nil {
		h.cfg.Logger.Debug("stream open", "id", id)
		return
	}
	hs.conn.Close()
	if evicted {
		err = fmt.Errorf("evicted after %v by newer ones", time.Since(hs.since).Round(time.Millisecond))
	}
	h.cfg.Logger.Warn("stream refused", "id", id, "peer", hs.conn.RemoteAddr(), "err", err)
}

// shake reads the id, reserves it, echoes it and publishes the stream. On an
// error the connection is still the caller's, and nothing is registered.
func (h *Hub) shake(hs *handshake) (id string, err error) {
	c := hs.conn
	if err := c.SetDeadline(time.Now().Add(h.cfg.HandshakeTimeout)); err != nil {
		return "", err
	}
	r := &rightsReader{c: c}
	defer func() {
		if err != nil {
			closeFDs(r.fds)
		}
	}()
	if id, err = h.cfg.Framing.decode(r); err == nil && r.excess {
		err = sys.Invalidf("more than %d descriptors came with the id", MaxFDs)
	}
	if err != nil {
		h.refuse(c, err)
		return id, fmt.Errorf("read the id: %w", err)
	}
	e, err := h.reserve(id, c, r.fds)
	if err != nil {
		h.refuse(c, err)
		return id, err
	}
	if err = h.echo(c, id); err != nil {
		h.free(e)
		return id, err
	}
	if !h.publish(hs, e) {
		h.free(e)
		return id, net.ErrClosed
	}
	return id, nil
}

func (h *Hub) echo(c Conn, id string) error {
	frame, err := h.cfg.Framing.encode(id)
	if err != nil {
		return err
	}
	if _, err := c.Write(frame); err != nil {
		return fmt.Errorf("echo the id: %w", err)
	}
	return c.SetDeadline(time.Time{})
}

// refuse tells the peer why, where the framing can. The deadline is still set;
// if the text does not get out, closing the connection must do.
func (h *Hub) refuse(c Conn, why error) {
	if h.cfg.Framing != FramingString || !tellable(why) {
		return
	}
	text := why.Error()
	c.Write(encodeText(text[:min(len(text), maxID)]))
}

// tellable reports whether the peer is there to be told and to blame.
func tellable(why error) bool {
	return errors.Is(why, sys.ErrInvalid) || errors.Is(why, sys.ErrExists) || errors.Is(why, sys.ErrState)
}
