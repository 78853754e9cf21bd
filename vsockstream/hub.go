package vsockstream

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"vminit/internal/sys"
)

// HubConfig configures a Hub; every zero field means a good default.
type HubConfig struct {
	Framing          Framing
	HandshakeTimeout time.Duration // from accept to the echoed id; 10 s
	UnclaimedTimeout time.Duration // how long a stream waits for its Claim; 2 min
	ClaimTimeout     time.Duration // how long Claim waits for its stream; 10 s
	MaxUnclaimed     int           // streams waiting for their Claim; 4096
	MaxHandshakes    int           // handshakes at once; 1024
	Logger           *slog.Logger  // nil is silence
}

func (c HubConfig) withDefaults() HubConfig {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&c.HandshakeTimeout, 10*time.Second)
	set(&c.UnclaimedTimeout, 2*time.Minute)
	set(&c.ClaimTimeout, 10*time.Second)
	if c.MaxUnclaimed <= 0 {
		c.MaxUnclaimed = 4096
	}
	if c.MaxHandshakes <= 0 {
		c.MaxHandshakes = 1024
	}
	c.Logger = loggerOr(c.Logger)
	return c
}

// Hub is the guest's registry of streams: the host connects and names an id,
// the daemon claims that id. Either may come first. All methods may be called
// concurrently.
//
// An id passes through
//
//	free -> reserved -> unclaimed -> claimed -> free
//
// reserved while the echo is being written, so that nobody writes to the
// stream before it; claimed until the claimer closes the stream. An id that is
// not free is refused to a newcomer, unless it is unclaimed and its peer is
// gone: then a host that lost its connection has come back.
type Hub struct {
	cfg  HubConfig
	done chan struct{}  // closed by Close
	wg   sync.WaitGroup // Serve loops and handshakes

	// slot holds a token when a handshake has ended since someone last looked.
	slot chan struct{}

	// mu guards the fields below. Nothing blocks while it is held.
	mu         sync.Mutex
	closed     bool
	listeners  map[net.Listener]struct{}
	handshakes map[*handshake]struct{}
	entries    map[string]*entry
	waiting    int                      // how many of entries are reserved or unclaimed
	waiters    map[string]chan struct{} // one Claim per id; closed when the id is published
}

// entryState is where an id is that is not free.
type entryState int

const (
	reserved entryState = iota
	unclaimed
	claimed
)

// entry is an id that is not free. Its fields are guarded by Hub.mu.
type entry struct {
	id    string
	state entryState
	conn  Conn
	fds   []int       // handed over with the id; the entry's until claimed
	timer *time.Timer // drops it when unclaimed for too long
}

// NewHub returns a hub that serves nobody yet.
func NewHub(cfg HubConfig) *Hub {
	return &Hub{
		cfg:        cfg.withDefaults(),
		done:       make(chan struct{}),
		slot:       make(chan struct{}, 1),
		listeners:  make(map[net.Listener]struct{}),
		handshakes: make(map[*handshake]struct{}),
		entries:    make(map[string]*entry),
		waiters:    make(map[string]chan struct{}),
	}
}

// Claim returns the stream of that id and takes it out of the registry; the
// caller closes it. If it has not arrived yet, Claim waits for it, at most
// HubConfig.ClaimTimeout and only while ctx lives. The error names the id and
// is sys.ErrInvalid for an id the framing cannot carry, sys.ErrNotFound for a
// stream that did not come or was claimed before, sys.ErrState when another
// Claim of it is waiting or the hub is closed. The Conn is a *Stream.
func (h *Hub) Claim(ctx context.Context, id string) (Conn, error) {
	if _, err := h.cfg.Framing.encode(id); err != nil {
		return nil, err
	}
	timeout := time.NewTimer(h.cfg.ClaimTimeout)
	defer timeout.Stop()
	for {
		s, published, err := h.claimOrWait(id)
		if err != nil {
			return nil, err
		}
		if s != nil {
			return s, nil
		}
		select {
		case <-published:
			continue
		case <-ctx.Done():
			err = fmt.Errorf("stream %.64q: %w while waiting for it", id, context.Cause(ctx))
		case <-timeout.C:
			err = sys.Mark(sys.ErrNotFound, fmt.Errorf("stream %.64q did not arrive within %v: the host must connect to the stream port and send this id", id, h.cfg.ClaimTimeout))
		case <-h.done:
			err = errClosed(id)
		}
		h.mu.Lock()
		if h.waiters[id] == published {
			delete(h.waiters, id)
		}
		h.mu.Unlock()
		return nil, err
	}
}

// claimOrWait returns the stream if it is there, else a channel that is closed
// when it is published.
func (h *Hub) claimOrWait(id string) (*Stream, chan struct{}, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, nil, errClosed(id)
	}
	e := h.entries[id]
	if e != nil && e.state == claimed {
		return nil, nil, sys.Mark(sys.ErrNotFound, fmt.Errorf("stream %.64q was claimed already", id))
	}
	if e != nil && e.state == unclaimed {
		e.timer.Stop()
		e.state = claimed
		h.waiting--
		return &Stream{Conn: e.conn, id: id, fds: e.fds, release: func() { h.free(e) }}, nil, nil
	}
	if h.waiters[id] != nil {
		return nil, nil, sys.Mark(sys.ErrState, fmt.Errorf("stream %.64q is being claimed already", id))
	}
	published := make(chan struct{})
	h.waiters[id] = published
	return nil, published, nil
}

// reserve takes the id for c, or says why it cannot have it.
func (h *Hub) reserve(id string, c Conn, fds []int) (*entry, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errClosed(id)
	}
	if old := h.entries[id]; old != nil {
		if old.state != unclaimed || !peerGone(old.conn) {
			return nil, sys.Mark(sys.ErrExists, fmt.Errorf("stream %.64q is in use", id))
		}
		h.dropLocked(old)
	}
	if h.waiting >= h.cfg.MaxUnclaimed {
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("stream %.64q: %d streams wait to be claimed already", id, h.waiting))
	}
	e := &entry{id: id, state: reserved, conn: c, fds: fds}
	h.entries[id] = e
	h.waiting++
	return e, nil
}

// publish ends the handshake hs with its id claimable, and wakes the Claim that
// waits for it. It reports false if hs was evicted or the hub closed meanwhile:
// its connection is closed then.
func (h *Hub) publish(hs *handshake, e *entry) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, mine := h.handshakes[hs]; !mine || h.closed {
		return false
	}
	delete(h.handshakes, hs)
	e.state = unclaimed
	e.timer = time.AfterFunc(h.cfg.UnclaimedTimeout, func() { h.expire(e) })
	if len(e.fds) > 0 {
		go h.watch(e)
	}
	if published := h.waiters[e.id]; published != nil {
		delete(h.waiters, e.id)
		close(published)
	}
	return true
}

// expire drops a stream that nobody claimed in time.
func (h *Hub) expire(e *entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.entries[e.id] == e && e.state == unclaimed {
		h.dropLocked(e)
		h.cfg.Logger.Warn("stream dropped: nobody claimed it", "id", e.id, "after", h.cfg.UnclaimedTimeout)
	}
}

// watch drops a stream with descriptors when its peer goes before it is
// claimed, and ends when its connection does: others may wait for the last of them to be closed. Such a stream
// carries no bytes, so nobody misses what is read here.
func (h *Hub) watch(e *entry) {
	_, _ = e.conn.Read(make([]byte, 1))
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.entries[e.id] == e && e.state == unclaimed {
		h.dropLocked(e)
	}
}

// dropLocked closes an unclaimed stream and frees its id. mu is held.
func (h *Hub) dropLocked(e *entry) {
	e.timer.Stop()
	delete(h.entries, e.id)
	h.waiting--
	e.conn.Close()
	closeFDs(e.fds)
}

// free makes the id of an entry free again; its connection is another's care.
func (h *Hub) free(e *entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.entries[e.id] != e {
		return
	}
	delete(h.entries, e.id)
	if e.state != claimed {
		h.waiting--
	}
}

// Stats counts the handshakes under way, the streams waiting for their Claim
// and the claimed ones not closed yet.
func (h *Hub) Stats() (handshaking, unclaimed, claimed int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.handshakes), h.waiting, len(h.entries) - h.waiting
}

// Close ends every Serve, handshake and waiting Claim, closes the streams that
// nobody claimed, and waits until that is done. Claimed streams are their
// claimers' and live on. It may be called more than once.
func (h *Hub) Close() error {
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		close(h.done)
		for l := range h.listeners {
			l.Close()
		}
		for hs := range h.handshakes {
			hs.conn.Close()
		}
		for _, e := range h.entries {
			if e.state == unclaimed {
				h.dropLocked(e)
			}
		}
	}
	h.mu.Unlock()
	h.wg.Wait()
	return nil
}

// peerGone reports whether the peer of c can no longer receive.
func peerGone(c Conn) bool {
	gone := true
	err := control(c, func(fd int) error { gone = deaf(fd); return nil })
	return gone || err != nil
}

func errClosed(id string) error {
	return sys.Mark(sys.ErrState, fmt.Errorf("stream %.64q: the stream hub is closed", id))
}
