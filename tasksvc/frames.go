package tasksvc

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"
)

// ttrpc's framing (ttrpc PROTOCOL.md): a header of 10 bytes (length of the
// payload, stream id, type, flags; big endian) and the payload.
const (
	frameHeaderLen = 10

	frameRequest  = 1
	frameResponse = 2
	frameData     = 3
	frameIgnored  = 0 // a type that ttrpc reads and does nothing about

	flagRemoteClosed = 1 // the sender sends nothing more on this stream
)

// maxPeek is the size of the largest request payload that is looked into.
const maxPeek = 4 << 10

// frameScanner follows the frames of one direction of a connection as their
// bytes pass, in pieces of any size.
type frameScanner struct {
	// header is called when all but the last header byte (the flags) have
	// passed. It returns the type to put in its place, and whether the payload
	// is wanted.
	header func(f frame) (kind byte, keep bool)
	// end is called when the frame has passed; payload is nil unless it was
	// wanted, has no more than maxPeek bytes, and must not be kept.
	end func(f frame, payload []byte)

	buf    [frameHeaderLen]byte
	have   int    // bytes of the header in buf
	left   uint32 // bytes of the payload still to come
	keep   bool
	kept   []byte
	passed frame
}

// frame is a frame's header.
type frame struct {
	length, id  uint32
	kind, flags byte
}

// scan follows p, and changes the type of a frame in it if header says so.
func (s *frameScanner) scan(p []byte) {
	for len(p) > 0 {
		if s.have < frameHeaderLen {
			s.buf[s.have] = p[0]
			if s.have++; s.have == frameHeaderLen-1 {
				s.passed = frame{
					length: binary.BigEndian.Uint32(s.buf[0:4]),
					id:     binary.BigEndian.Uint32(s.buf[4:8]),
					kind:   s.buf[8],
				}
				kind, keep := s.header(s.passed)
				if kind != s.passed.kind {
					p[0], s.passed.kind = kind, kind
				}
				s.keep = keep && s.passed.length <= maxPeek
				s.left, s.kept = s.passed.length, s.kept[:0]
			}
			p = p[1:]
			if s.have == frameHeaderLen {
				s.passed.flags = s.buf[9]
				s.finish()
			}
			continue
		}
		n := int(min(uint64(s.left), uint64(len(p))))
		if s.keep {
			s.kept = append(s.kept, p[:n]...)
		}
		s.left -= uint32(n)
		p = p[n:]
		s.finish()
	}
}

// finish ends the frame if all of it has passed.
func (s *frameScanner) finish() {
	if s.left > 0 {
		return
	}
	s.have = 0
	if s.keep {
		s.end(s.passed, s.kept)
	} else {
		s.end(s.passed, nil)
	}
}

// requestMethod returns service and method of a ttrpc.Request (its fields 1
// and 2), empty strings if payload is not one. Like any protobuf decoder it
// lets the last occurrence of a field win: ttrpc will call what it finds.
func requestMethod(payload []byte) (service, method string) {
	for len(payload) > 0 {
		num, typ, n := protowire.ConsumeTag(payload)
		if n < 0 {
			return "", ""
		}
		payload = payload[n:]
		if typ == protowire.BytesType && (num == 1 || num == 2) {
			v, n := protowire.ConsumeBytes(payload)
			if n < 0 {
				return "", ""
			}
			if num == 1 {
				service = string(v)
			} else {
				method = string(v)
			}
			payload = payload[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, payload); n < 0 {
			return "", ""
		}
		payload = payload[n:]
	}
	return service, method
}

// takesStream reports whether a method takes a stream from its client.
func takesStream(service, method string) bool {
	return service == "nerdbox.services.socketforward.v1.SocketForward" && method == "Accept"
}
