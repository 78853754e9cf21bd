package vhostvsock

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// bufAlloc is the receive buffer advertised to the guest for each connection,
	// bytes: what a backlog can grow to. Linux guests use the same size.
	bufAlloc = 256 << 10

	// maxFlows bounds the connections of a device, and with bufAlloc its memory.
	maxFlows = 4096

	// closeTimeout is how long a connection that the host has closed waits for a
	// guest that neither reads the rest nor answers. Linux waits 8 s for a mere
	// answer; a guest under emulation may be slow to read.
	closeTimeout = 30 * time.Second
)

// flowKey names a connection by its two ports; the CIDs are always 2 and the guest's.
type flowKey struct {
	host, guest uint32
}

// flowState is where a connection is in its life.
type flowState uint8

const (
	// flowRequested: Dial waits for the guest's answer. No traffic yet.
	flowRequested flowState = iota
	// flowOpen: data can go both ways, or one way after half-closes.
	flowOpen
	// flowClosing: the guest was told shutBoth and its RST is awaited; fd is gone.
	flowClosing
)

// owed are the packets without payload that a flow has to send.
type owed uint8

const (
	oweRequest owed = 1 << iota
	oweResponse
	oweCredit
)

// flow is one connection. The loop owns it.
type flow struct {
	key   flowKey
	id    uint64 // in epoll data and session.byID
	fd    int    // our end of the socket pair; -1 when closed
	state flowState
	end   *endState
	dial  *dialRequest // in flowRequested
	timer *time.Timer  // closeTimeout, once the host has closed

	// Host to guest. Counters are modulo 2^32 as on the wire.
	readable   bool // the socket may have data or its end
	ending     bool // its end is near: EPOLLRDHUP
	eof        bool // its end was read
	hup        bool // the host has closed both ways
	peerAlloc  uint32
	peerFwd    uint32
	sent       uint32
	timerCheck uint32 // sent when the timer was set

	// Guest to host.
	held      backlog
	watchOut  bool   // epoll tells when the socket has room again
	discard   bool   // nobody reads any more
	forwarded uint32 // bytes given to the socket: our fwd_cnt
	told      uint32 // the fwd_cnt the guest knows

	// Packets to send. shut* are combinations of shutReceive and shutSend.
	owe       owed
	shutWant  uint8 // what the guest has to be told
	shutTold  uint8
	shutHeard uint8 // what the guest has told

	// In session.ready.
	queued     bool
	prev, next *flow
}

// credit returns how many bytes the guest has room for (virtio 1.2, 5.10.6.3).
func (f *flow) credit() uint32 {
	inFlight := f.sent - f.peerFwd
	if inFlight >= f.peerAlloc { // also a guest that claims to have consumed more than was sent
		return 0
	}
	return f.peerAlloc - inFlight
}

// canSendData says whether to try to read from the socket for the guest.
func (f *flow) canSendData() bool {
	return f.state == flowOpen && f.readable && !f.eof && f.shutHeard&shutReceive == 0 && f.credit() > 0
}

// hasWork says whether the flow belongs into session.ready.
func (f *flow) hasWork() bool {
	return f.owe != 0 || f.shutWant != f.shutTold || f.canSendData()
}

// consumed counts n bytes from the guest as gone, and owes the guest an update
// when it could otherwise run out of credit: Linux stops at its own buffer size in
// flight if that is smaller than ours.
func (f *flow) consumed(n int) {
	f.forwarded += uint32(n)
	if n > 0 && f.forwarded-f.told > min(bufAlloc, f.peerAlloc)/4 {
		f.owe |= oweCredit
	}
}

// deliver gives payload from the guest to the socket. What the socket does not
// take is held; false if that is more than the guest had credit for, or if the
// socket failed.
func (f *flow) deliver(io *vector, payload [][]byte, size int) bool {
	if f.held.size+size > bufAlloc {
		return false
	}
	if f.discard || size == 0 {
		f.consumed(size)
		return true
	}
	n := 0
	if f.held.size == 0 {
		var err error
		n, err = io.send(f.fd, payload)
		switch {
		case err == unix.EPIPE || err == unix.ECONNRESET:
			f.stopReceiving()
			f.consumed(size)
			return true
		case err != nil && err != unix.EAGAIN:
			return false
		}
	}
	f.held.append(skip(payload, n))
	f.consumed(n)
	return true
}

// flush gives what is held to the socket as far as it goes; false if that failed.
func (f *flow) flush(io *vector) bool {
	n, err := f.held.sendSome(f.fd, io)
	f.consumed(n)
	switch err {
	case nil, unix.EAGAIN:
		return true
	case unix.EPIPE, unix.ECONNRESET:
		f.stopReceiving()
		return true
	default:
		return false
	}
}

// stopReceiving is for a socket whose other end takes nothing any more: the guest
// is told, and what it sends meanwhile is thrown away.
func (f *flow) stopReceiving() {
	f.discard = true
	f.shutWant |= shutReceive
	n := f.held.size
	f.held.discard(n)
	f.consumed(n)
}
