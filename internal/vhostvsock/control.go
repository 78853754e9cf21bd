package vhostvsock

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Feature bits. EVENT_IDX, INDIRECT_DESC and VIRTIO_VSOCK_F_SEQPACKET are not
// offered: a guest acknowledges whatever is.
const (
	featureProtocol = 1 << 30 // VHOST_USER_F_PROTOCOL_FEATURES
	featureVersion1 = 1 << 32 // VIRTIO_F_VERSION_1

	offeredFeatures = featureProtocol | featureVersion1
)

// Protocol feature bits. CONFIG is what QEMU 7.2 insists on; REPLY_ACK makes it wait
// until a new memory table is in force. STATUS makes it hang.
const (
	protocolReplyAck = 1 << 3
	protocolConfig   = 1 << 9

	offeredProtocol = protocolReplyAck | protocolConfig
)

var errSmallBuffer = errors.New("receive buffer has no room for a packet")

// control handles the vhost-user messages that have arrived. An error, io.EOF
// among them, ends the session.
func (s *session) control() error {
	for {
		m, err := s.reader.read(s.front)
		if err == unix.EAGAIN || err == unix.EINTR {
			return nil
		}
		if err != nil {
			return err
		}
		reply, err := s.handle(m)
		m.closeFds()
		if err != nil {
			return fmt.Errorf("vhost-user message %d: %w", m.request, err)
		}
		if reply == nil && m.flags&flagNeedReply != 0 && s.protocol&protocolReplyAck != 0 {
			reply = u64Reply(0)
		}
		if reply == nil {
			continue
		}
		b := appendReply(nil, m.request, reply)
		if n, err := unix.SendmsgN(s.front, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil || n != len(b) {
			return fmt.Errorf("vhost-user reply %d: %d of %d bytes sent: %w", m.request, n, len(b), err)
		}
	}
}

func u64Reply(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// handle carries one message out and returns the payload of the reply that the
// request defines, nil if it defines none.
func (s *session) handle(m *message) (reply []byte, err error) {
	switch m.request {
	case reqGetFeatures:
		return u64Reply(offeredFeatures), nil
	case reqSetFeatures:
		s.features, err = m.u64()
	case reqGetProtocolFeatures:
		return u64Reply(offeredProtocol), nil
	case reqSetProtocolFeatures:
		s.protocol, err = m.u64()
	case reqGetQueueNum:
		return u64Reply(numRings), nil
	case reqSetOwner, reqResetOwner:
	case reqGetConfig:
		return m.configReply(u64Reply(s.dev.cfg.GuestCID))
	case reqSetMemTable:
		err = s.setMemTable(m)
	case reqSetVringNum:
		err = s.setVringNum(m)
	case reqSetVringAddr:
		err = s.setVringAddr(m)
	case reqSetVringBase:
		err = s.setVringBase(m)
	case reqGetVringBase:
		return s.getVringBase(m)
	case reqSetVringKick:
		err = s.setVringKick(m)
	case reqSetVringCall:
		err = s.setVringCall(m)
	case reqSetVringErr:
		var i, fd int
		if i, fd, err = m.vringFd(); err == nil {
			replaceFd(&s.rings[i].errs, fd)
		}
	case reqSetVringEnable:
		err = s.setVringEnable(m)
	default:
		s.log.Debug("vsock device: vhost-user message ignored", "request", m.request)
		if m.flags&flagNeedReply != 0 && s.protocol&protocolReplyAck != 0 {
			return u64Reply(1), nil
		}
	}
	return nil, err
}

// setMemTable replaces the memory table. Rings that run are found again in the new
// one before the old one goes.
func (s *session) setMemTable(m *message) error {
	regions, err := m.memTable()
	if err != nil {
		return err
	}
	mem, err := mapMemory(regions, m.fds)
	if err != nil {
		return err
	}
	old := s.mem
	s.mem = mem
	for i := range s.rings {
		if r := &s.rings[i]; r.started && !r.broken {
			s.startRing(i)
		}
	}
	// Stale pointers into what is unmapped now could look like Go's own later.
	clear(s.vec[:cap(s.vec)])
	clear(s.data[:cap(s.data)])
	old.close()
	return nil
}

// startRing finds a ring in memory. Where it is was the guest's choice: a ring that
// is nowhere is the guest's problem, not QEMU's.
func (s *session) startRing(index int) {
	r := &s.rings[index]
	if err := r.start(s.mem); err != nil {
		r.stop()
		r.started, r.broken = true, true
		signal(r.errs)
		s.warn("ring cannot be used", "ring", index, "error", err)
	}
}

func (s *session) setVringNum(m *message) error {
	i, num, err := m.vringState()
	if err != nil {
		return err
	}
	if num == 0 || num > maxRingSize || num&(num-1) != 0 {
		return fmt.Errorf("ring of %d entries", num)
	}
	if s.rings[i].started {
		return errors.New("the ring is running")
	}
	s.rings[i].num = num
	return nil
}

func (s *session) setVringAddr(m *message) error {
	i, addrs, err := m.vringAddr()
	if err != nil {
		return err
	}
	r := &s.rings[i]
	r.addrs = addrs
	if r.started && !r.broken { // moved while running
		s.startRing(i)
	}
	return nil
}

// setVringBase is where pause and reset of the guest differ: after a pause the
// ring goes on where it stopped.
func (s *session) setVringBase(m *message) error {
	i, base, err := m.vringState()
	if err != nil {
		return err
	}
	r := &s.rings[i]
	if r.started {
		return errors.New("the ring is running")
	}
	if uint16(base) != r.saved {
		s.dropFlows()
	}
	r.next = uint16(base)
	return nil
}

// getVringBase stops a ring and says where.
func (s *session) getVringBase(m *message) ([]byte, error) {
	i, _, err := m.vringState()
	if err != nil {
		return nil, err
	}
	r := &s.rings[i]
	s.stopKicks(r)
	r.stop()
	reply := binary.LittleEndian.AppendUint32(nil, uint32(i))
	return binary.LittleEndian.AppendUint32(reply, uint32(r.saved)), nil
}

// stopKicks gives the kick fd up.
func (s *session) stopKicks(r *vring) {
	if r.kick >= 0 {
		s.unwatch(r.kick)
		replaceFd(&r.kick, -1)
	}
}

// setVringKick starts a ring.
func (s *session) setVringKick(m *message) error {
	i, fd, err := m.vringFd()
	if err != nil {
		return err
	}
	if fd < 0 {
		return errors.New("rings without kicks are not supported")
	}
	r := &s.rings[i]
	s.stopKicks(r)
	// Edge-triggered and never read: every write is an edge, and a read could block.
	if err := s.watch(fd, ringID+uint64(i), unix.EPOLLIN|unix.EPOLLET); err != nil {
		_ = unix.Close(fd)
		return err
	}
	r.kick = fd
	if !r.started {
		s.startRing(i)
	}
	if s.features&featureProtocol == 0 {
		r.enabled = true
	}
	return nil
}

// setVringCall replaces the fd for interrupts. What was signalled on the old one
// may be lost, so the guest is told to look.
func (s *session) setVringCall(m *message) error {
	i, fd, err := m.vringFd()
	if err != nil {
		return err
	}
	replaceFd(&s.rings[i].call, fd)
	signal(fd)
	return nil
}

// setVringEnable lets a ring run, or pauses it. (The loop looks at all rings after
// any message, so buffers that are there already are found.)
func (s *session) setVringEnable(m *message) error {
	i, on, err := m.vringState()
	if err != nil {
		return err
	}
	r := &s.rings[i]
	if on == 0 && i == txRing && r.running() {
		// What the guest sent last, before a power off for instance, still counts.
		s.serviceTx(r)
	}
	r.enabled = on != 0
	return nil
}
