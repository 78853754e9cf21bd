package vhostvsock

import "golang.org/x/sys/unix"

// maxResets is how many RSTs may wait for the guest before its packets have to
// wait as well: the only thing that a guest could otherwise pile up. (Everything
// else it is owed is noted in the flow it is owed for.)
const maxResets = 1024

// serviceTx takes packets that the guest sends, one round of the ring at most;
// true if there may be more.
func (s *session) serviceTx(tx *vring) (more bool) {
	defer tx.interrupt()
	for range tx.num {
		if s.resets.len() >= maxResets {
			return false // serviceRx continues when it has sent them
		}
		n, err := tx.pending()
		if n == 0 && err == nil {
			tx.wantKicks()
			n, err = tx.pending()
		}
		switch {
		case err != nil:
			s.breakRing(txRing, err)
			return false
		case n == 0:
			return false
		}
		tx.suppressKicks()
		vec, head, err := tx.chain(s.mem, s.vec[:0], 0, false)
		s.vec = vec
		if err != nil {
			s.breakRing(txRing, err)
			return false
		}
		s.packet(vec)
		tx.push(head, 0)
		tx.publish()
	}
	return true
}

// packet handles one packet from the guest. It changes vec.
func (s *session) packet(vec [][]byte) {
	var raw [headerSize]byte
	if gather(raw[:], vec) < headerSize {
		s.warn("packet of the guest is shorter than its header", "bytes", total(vec))
		return
	}
	h := parseHeader(&raw)
	if h.srcCID != s.dev.cfg.GuestCID || h.dstCID != hostCID {
		s.warn("packet of the guest has foreign addresses", "packet", h)
		return
	}
	key := flowKey{host: h.dstPort, guest: h.srcPort}
	f := s.flows[key]
	if f != nil && f.state == flowClosing && h.op == opRequest {
		s.remove(f) // the guest has forgotten it and uses the ports again
		f = nil
	}
	switch {
	case h.socketType != socketStream:
		s.refuse(key, &h)
	case f != nil:
		f.peerAlloc, f.peerFwd = h.bufAlloc, h.fwdCnt
		s.flowPacket(f, &h, skip(vec, headerSize))
		s.schedule(f)
	case h.op == opRequest:
		s.accept(&h)
	default:
		s.refuse(key, &h)
	}
}

// flowPacket handles a packet of a known flow.
func (s *session) flowPacket(f *flow, h *header, payload [][]byte) {
	switch {
	case h.op == opReset:
		s.peerReset(f)
	case h.op == opShutdown:
		s.peerShutdown(f, uint8(h.flags&shutBoth))
	case f.state == flowRequested:
		if h.op == opResponse {
			s.answerDial(f, nil)
		} else {
			s.violation(f, h)
		}
	case f.state == flowClosing:
		// On its way before the guest heard of the end.
	case h.op == opData:
		size := int(h.length)
		if size > total(payload) || f.shutHeard&shutSend != 0 || !f.deliver(&s.io, truncate(payload, size), size) {
			s.violation(f, h)
			return
		}
		s.watchRoom(f)
	case h.op == opCreditUpdate:
	case h.op == opCreditRequest:
		f.owe |= oweCredit
	default:
		s.violation(f, h)
	}
}

// peerReset handles the guest's RST, which is never answered with another.
func (s *session) peerReset(f *flow) {
	switch f.state {
	case flowRequested:
		s.answerDial(f, errRefused)
	case flowOpen:
		s.detach(f, f.shutHeard&shutSend == 0)
	case flowClosing:
		s.remove(f)
	}
}

// peerShutdown handles the guest's SHUTDOWN with flags.
func (s *session) peerShutdown(f *flow, flags uint8) {
	f.shutHeard |= flags
	if f.shutHeard == shutBoth || f.state == flowRequested {
		// A close(2), which waits in the guest until it hears RST.
		s.reset(f.key, socketStream)
		if f.state == flowRequested {
			s.answerDial(f, errRefused)
		} else {
			s.detach(f, false)
		}
		return
	}
	if f.state != flowOpen {
		return
	}
	if flags&shutReceive != 0 {
		_ = unix.Shutdown(f.fd, unix.SHUT_RD) // the host's writes fail from now on
		if f.hup {
			f.shutWant = shutBoth
		}
	}
	s.endOfData(f)
}

// endOfData passes the guest's half-close on once all data before it is through.
func (s *session) endOfData(f *flow) {
	if f.shutHeard&shutSend != 0 && f.held.size == 0 {
		_ = unix.Shutdown(f.fd, unix.SHUT_WR)
	}
}

// watchRoom has epoll tell when the socket takes data again, while data is held.
func (s *session) watchRoom(f *flow) {
	want := f.held.size > 0
	if f.fd < 0 || want == f.watchOut {
		return
	}
	events := uint32(flowEvents)
	if want {
		events |= unix.EPOLLOUT
	}
	if err := s.epollCtl(unix.EPOLL_CTL_MOD, f.fd, f.id, events); err == nil {
		f.watchOut = want
	}
}

// violation ends a flow whose guest does not keep to the rules.
func (s *session) violation(f *flow, h *header) {
	s.warn("packet of the guest does not fit its connection", "packet", h)
	s.reset(f.key, socketStream)
	if f.state == flowRequested {
		s.answerDial(f, errRefused)
		return
	}
	s.detach(f, true)
}

// refuse answers a packet of no known flow.
func (s *session) refuse(key flowKey, h *header) {
	if h.op != opReset {
		s.reset(key, h.socketType)
	}
}

// warn logs the first trouble that the guest makes; the guest must not be able to
// fill the log with the rest, which is there only for those who debug.
func (s *session) warn(what string, args ...any) {
	if !s.warned {
		s.warned = true
		s.log.Warn("vsock device: "+what, args...)
		return
	}
	s.log.Debug("vsock device: "+what, args...)
}

// breakRing stops a ring with nonsense in it until the guest resets the device.
func (s *session) breakRing(index int, err error) {
	r := &s.rings[index]
	r.broken = true
	signal(r.errs)
	s.warn("ring stopped until the guest resets the device", "ring", index, "error", err)
	s.dropFlows()
}
