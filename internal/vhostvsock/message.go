package vhostvsock

import (
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Requests of the vhost-user protocol ("Vhost-user Protocol", front-end message types).
type request uint32

const (
	reqGetFeatures         request = 1
	reqSetFeatures         request = 2
	reqSetOwner            request = 3
	reqResetOwner          request = 4
	reqSetMemTable         request = 5
	reqSetVringNum         request = 8
	reqSetVringAddr        request = 9
	reqSetVringBase        request = 10
	reqGetVringBase        request = 11
	reqSetVringKick        request = 12
	reqSetVringCall        request = 13
	reqSetVringErr         request = 14
	reqGetProtocolFeatures request = 15
	reqSetProtocolFeatures request = 16
	reqGetQueueNum         request = 17
	reqSetVringEnable      request = 18
	reqGetConfig           request = 24
)

const (
	messageVersion   = 1
	flagVersionMask  = 3
	flagReply        = 4
	flagNeedReply    = 8
	messageHeader    = 12
	maxMessageLength = 4096 // of a payload; the largest one used is 272
	maxMessageFds    = 8    // VHOST_MEMORY_BASELINE_NREGIONS

	vringIndexMask = 0xff  // of the payload of SET_VRING_KICK, CALL and ERR
	vringNoFd      = 0x100 // the same: no fd came along
)

// message is one vhost-user message from QEMU.
type message struct {
	request request
	flags   uint32
	payload []byte
	fds     []int // owned by the message; handlers that keep one replace it by -1
}

// closeFds closes the descriptors that nobody took.
func (m *message) closeFds() {
	for _, fd := range m.fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	m.fds = nil
}

// takeFd hands out the message's only fd, -1 if there is none.
func (m *message) takeFd() int {
	if len(m.fds) != 1 {
		return -1
	}
	fd := m.fds[0]
	m.fds = nil
	return fd
}

// u64 decodes a payload that is one number.
func (m *message) u64() (uint64, error) {
	if len(m.payload) != 8 {
		return 0, fmt.Errorf("payload has %d bytes, want 8", len(m.payload))
	}
	return binary.LittleEndian.Uint64(m.payload), nil
}

// vringState decodes {index, number}; the index is a ring that exists.
func (m *message) vringState() (index int, num uint32, err error) {
	if len(m.payload) != 8 {
		return 0, 0, fmt.Errorf("payload has %d bytes, want 8", len(m.payload))
	}
	i := binary.LittleEndian.Uint32(m.payload)
	if i >= numRings {
		return 0, 0, fmt.Errorf("there is no ring %d", i)
	}
	return int(i), binary.LittleEndian.Uint32(m.payload[4:]), nil
}

// vringAddr decodes the payload of SET_VRING_ADDR: index, flags, descriptor
// table, used ring, available ring, log address.
func (m *message) vringAddr() (index int, a ringAddrs, err error) {
	if len(m.payload) != 40 {
		return 0, a, fmt.Errorf("payload has %d bytes, want 40", len(m.payload))
	}
	le := binary.LittleEndian
	i := le.Uint32(m.payload)
	if i >= numRings {
		return 0, a, fmt.Errorf("there is no ring %d", i)
	}
	return int(i), ringAddrs{desc: le.Uint64(m.payload[8:]), used: le.Uint64(m.payload[16:]), avail: le.Uint64(m.payload[24:])}, nil
}

// vringFd decodes SET_VRING_KICK, CALL and ERR and takes the fd, -1 if none came.
func (m *message) vringFd() (index, fd int, err error) {
	v, err := m.u64()
	if err != nil {
		return 0, -1, err
	}
	if v&vringIndexMask >= numRings {
		return 0, -1, fmt.Errorf("there is no ring %d", v&vringIndexMask)
	}
	if want := v&vringNoFd == 0; want != (len(m.fds) == 1) {
		return 0, -1, fmt.Errorf("%d file descriptors came with payload %#x", len(m.fds), v)
	}
	return int(v & vringIndexMask), m.takeFd(), nil
}

// memTable decodes SET_MEM_TABLE; the fds stay with the message.
func (m *message) memTable() ([]memRegion, error) {
	le := binary.LittleEndian
	if len(m.payload) < 8 {
		return nil, fmt.Errorf("payload has %d bytes, want 8 or more", len(m.payload))
	}
	n := le.Uint32(m.payload)
	if n > maxMessageFds || len(m.payload) < 8+32*int(n) {
		return nil, fmt.Errorf("payload of %d bytes cannot hold %d regions", len(m.payload), n)
	}
	regions := make([]memRegion, n)
	for i := range regions {
		b := m.payload[8+32*i:]
		regions[i] = memRegion{guestAddr: le.Uint64(b), size: le.Uint64(b[8:]), userAddr: le.Uint64(b[16:]), fileOffset: le.Uint64(b[24:])}
	}
	return regions, nil
}

// configReply answers GET_CONFIG from config: the reply has the size of the
// question, or no payload but its own header if the range does not exist.
func (m *message) configReply(config []byte) ([]byte, error) {
	const head = 12 // offset, size, flags
	if len(m.payload) < head {
		return nil, fmt.Errorf("payload has %d bytes, want %d or more", len(m.payload), head)
	}
	offset, size := binary.LittleEndian.Uint32(m.payload), binary.LittleEndian.Uint32(m.payload[4:])
	reply := append([]byte(nil), m.payload[:head]...)
	if uint64(offset)+uint64(size) > uint64(len(config)) || int(size) != len(m.payload)-head {
		return reply, nil
	}
	return append(reply, config[offset:offset+size]...), nil
}

// messageReader collects messages from a stream socket piece by piece, never
// reading past the end of one, so that descriptors arrive with their message.
type messageReader struct {
	buf []byte
	fds []int
	oob [64]byte // CMSG_SPACE of maxMessageFds descriptors is 48
}

// read returns the next message, unix.EAGAIN if it is not complete yet, io.EOF
// when the peer is gone.
func (r *messageReader) read(fd int) (*message, error) {
	for {
		want := messageHeader
		if len(r.buf) >= messageHeader {
			size := binary.LittleEndian.Uint32(r.buf[8:])
			if size > maxMessageLength {
				return nil, fmt.Errorf("vhost-user message of %d bytes is longer than %d", size, maxMessageLength)
			}
			if want += int(size); len(r.buf) == want {
				return r.take()
			}
		}
		if err := r.fill(fd, want); err != nil {
			return nil, err
		}
	}
}

// fill receives up to want-len(buf) bytes and the descriptors that come with them.
func (r *messageReader) fill(fd, want int) error {
	have := len(r.buf)
	r.buf = append(r.buf, make([]byte, want-have)...)
	n, oobn, flags, _, err := unix.Recvmsg(fd, r.buf[have:], r.oob[:], unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		r.buf = r.buf[:have]
		return err
	}
	r.buf = r.buf[:have+n]
	if err := r.takeRights(r.oob[:oobn]); err != nil {
		return err
	}
	if flags&unix.MSG_CTRUNC != 0 || len(r.fds) > maxMessageFds {
		return fmt.Errorf("vhost-user message: more than %d file descriptors, or no room for them in this process (RLIMIT_NOFILE)", maxMessageFds)
	}
	if n == 0 {
		return io.EOF
	}
	return nil
}

// takeRights collects the descriptors of a control message.
func (r *messageReader) takeRights(oob []byte) error {
	cmsgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("parse control message: %w", err)
	}
	for i := range cmsgs {
		if fds, err := unix.ParseUnixRights(&cmsgs[i]); err == nil {
			r.fds = append(r.fds, fds...)
		}
	}
	return nil
}

// take returns the complete message in the buffer and starts a new one.
func (r *messageReader) take() (*message, error) {
	m := &message{
		request: request(binary.LittleEndian.Uint32(r.buf)),
		flags:   binary.LittleEndian.Uint32(r.buf[4:]),
		payload: append([]byte(nil), r.buf[messageHeader:]...),
		fds:     r.fds,
	}
	r.buf, r.fds = r.buf[:0], nil
	if m.flags&flagVersionMask != messageVersion {
		m.closeFds()
		return nil, fmt.Errorf("vhost-user message %d has flags %#x, want version %d", m.request, m.flags, messageVersion)
	}
	return m, nil
}

// close closes the descriptors of an unfinished message.
func (r *messageReader) close() {
	(&message{fds: r.fds}).closeFds()
	r.fds = nil
}

// appendReply encodes an answer to request.
func appendReply(b []byte, req request, payload []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(req))
	b = binary.LittleEndian.AppendUint32(b, messageVersion|flagReply)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}
