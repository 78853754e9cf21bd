package vhostvsock

import "golang.org/x/sys/unix"

// maxBurst is how many of the guest's buffers one flow fills in its turn. Linux
// gives buffers of 3,732 bytes in rings of 128.
const maxBurst = 32

// resetReply is an RST for the guest, in answer to a packet of no living flow.
type resetReply struct {
	key        flowKey
	socketType uint16
}

// burst is one of the guest's buffers about to be filled with data.
type burst struct {
	head     uint16
	from, to int // its pieces in session.vec
	room     int // for payload
}

// reset queues an RST.
func (s *session) reset(key flowKey, socketType uint16) {
	s.resets.push(resetReply{key, socketType})
}

// schedule lines a flow up that has something for the guest.
func (s *session) schedule(f *flow) {
	if f.hasWork() {
		s.ready.push(f)
	}
}

// flowEvent handles what epoll says about a flow's socket.
func (s *session) flowEvent(f *flow, what uint32) {
	if what&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		f.readable = true
	}
	if what&^unix.EPOLLIN&^unix.EPOLLOUT != 0 {
		f.ending = true
	}
	if what&unix.EPOLLHUP != 0 {
		// Closed, not half-closed, although both read as end of file.
		f.hup = true
		s.startTimer(f)
		if f.eof || f.shutHeard&shutReceive != 0 {
			f.shutWant = shutBoth
		}
	}
	if f.held.size > 0 && what&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		if !f.flush(&s.io) {
			s.abort(f)
			return
		}
		s.watchRoom(f)
		s.endOfData(f)
	}
	s.schedule(f)
}

// serviceRx gives the guest what it is owed, one round of its buffers at most;
// true if there may be more.
func (s *session) serviceRx(rx *vring) (more bool) {
	defer rx.interrupt()
	paused := s.resets.len() >= maxResets
	for range rx.num {
		if s.resets.len() == 0 && s.ready.empty() {
			rx.suppressKicks()
			return paused
		}
		n, err := rx.pending()
		if n == 0 && err == nil {
			rx.wantKicks()
			n, err = rx.pending()
		}
		switch {
		case err != nil:
			s.breakRing(rxRing, err)
			return false
		case n == 0:
			return paused && s.resets.len() < maxResets
		}
		rx.suppressKicks()
		if s.resets.len() > 0 {
			r := s.resets.pop()
			s.sendControl(rx, &header{srcPort: r.key.host, dstPort: r.key.guest, socketType: r.socketType, op: opReset})
		} else {
			s.serveFlow(rx, n)
		}
		if !rx.running() {
			return false
		}
	}
	return true
}

// serveFlow gives the first flow in line its turn: the packet that it owes most
// urgently, or a burst of data. There are n buffers, one at least.
func (s *session) serveFlow(rx *vring, n uint32) {
	f := s.ready.first
	s.ready.remove(f)
	switch {
	case f.owe&oweRequest != 0:
		s.sendFlow(rx, f, opRequest, 0)
		f.owe &^= oweRequest
	case f.owe&oweResponse != 0:
		s.sendFlow(rx, f, opResponse, 0)
		f.owe &^= oweResponse
	case f.shutWant != f.shutTold: // shutSend is wanted only after all data
		s.sendShutdown(rx, f)
	case f.canSendData():
		s.sendData(rx, f, n)
	case f.owe&oweCredit != 0:
		s.sendFlow(rx, f, opCreditUpdate, 0)
	}
	s.schedule(f)
}

// sendShutdown tells the guest which ways the host has closed. After both only the
// guest's RST is missing.
func (s *session) sendShutdown(rx *vring, f *flow) {
	s.sendFlow(rx, f, opShutdown, uint32(f.shutWant))
	f.shutTold = f.shutWant
	if f.shutTold != shutBoth {
		return
	}
	f.state = flowClosing
	delete(s.byID, f.id)
	replaceFd(&f.fd, -1)
	f.held.discard(f.held.size)
	s.startTimer(f)
}

// stamp completes a header of f, and with it tells the guest f's credit.
func (f *flow) stamp(h *header) {
	h.srcPort, h.dstPort, h.socketType = f.key.host, f.key.guest, socketStream
	h.bufAlloc, h.fwdCnt = bufAlloc, f.forwarded
	f.told = f.forwarded
	f.owe &^= oweCredit
}

// sendFlow sends a packet of f without payload.
func (s *session) sendFlow(rx *vring, f *flow, what op, flags uint32) {
	h := header{op: what, flags: flags}
	f.stamp(&h)
	s.sendControl(rx, &h)
}

// sendControl sends a packet without payload in the first pending buffer.
func (s *session) sendControl(rx *vring, h *header) {
	vec, head, err := rx.chain(s.mem, s.vec[:0], 0, true)
	s.vec = vec
	if err != nil {
		s.breakRing(rxRing, err)
		return
	}
	if !s.putHeader(vec, h) {
		return
	}
	rx.push(head, headerSize)
	rx.publish()
}

// putHeader writes h at the start of a buffer; a buffer too small breaks the ring.
func (s *session) putHeader(vec [][]byte, h *header) bool {
	h.srcCID, h.dstCID = hostCID, s.dev.cfg.GuestCID
	var raw [headerSize]byte
	h.encode(&raw)
	if n := scatter(vec, raw[:]); n < headerSize {
		s.breakRing(rxRing, errSmallBuffer)
		return false
	}
	return true
}

// sendData moves what f's socket has, as far as the guest's credit and n of its
// buffers go, with one readv(2) straight into the guest's memory.
func (s *session) sendData(rx *vring, f *flow, n uint32) {
	room, err := s.collect(rx, n, int(f.credit()))
	if err != nil {
		s.breakRing(rxRing, err)
		return
	}
	got, err := s.io.receive(f.fd, s.data)
	switch {
	case err == unix.EAGAIN:
		f.readable = false
		return
	case err == unix.ECONNRESET: // closed with unread data from the guest
		f.hup = true
		s.startTimer(f)
		fallthrough
	case err == nil && got == 0:
		f.eof = true
		f.shutWant |= shutSend
		if f.hup {
			f.shutWant = shutBoth
		}
		return
	case err != nil:
		s.abort(f)
		return
	case got < room && !f.ending:
		f.readable = false // a stream gives all it has; more, or its end, is a new edge
	}
	for _, b := range s.bursts {
		if got == 0 {
			break
		}
		size := min(got, b.room)
		h := header{op: opData, length: uint32(size)}
		f.stamp(&h)
		if !s.putHeader(s.vec[b.from:b.to], &h) {
			return
		}
		rx.push(b.head, headerSize+uint32(size))
		f.sent += uint32(size)
		got -= size
	}
	rx.publish()
}

// collect gathers pending buffers into s.bursts and their room for payload, limit
// bytes at most, into s.data. Returns the room, more than 0.
func (s *session) collect(rx *vring, n uint32, limit int) (room int, err error) {
	s.vec, s.data, s.bursts = s.vec[:0], s.data[:0], s.bursts[:0]
	for i := uint32(0); i < min(n, maxBurst) && room < limit; i++ {
		b := burst{from: len(s.vec)}
		s.vec, b.head, err = rx.chain(s.mem, s.vec, i, true)
		if err != nil {
			return 0, err
		}
		b.to = len(s.vec)
		mark := len(s.data)
		s.data = append(s.data, s.vec[b.from:b.to]...)
		payload := skip(s.data[mark:], headerSize)
		if b.room = total(payload); b.room == 0 {
			return 0, errSmallBuffer
		}
		if len(s.data) > maxSegments && i > 0 {
			s.data = s.data[:mark]
			break
		}
		b.room = min(b.room, limit-room)
		payload = truncate(payload, b.room)
		s.data = s.data[:mark+copy(s.data[mark:], payload)]
		room += b.room
		s.bursts = append(s.bursts, b)
	}
	return room, nil
}
