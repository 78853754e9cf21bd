package vhostvsock

import (
	"encoding/binary"
	"fmt"
)

// hostCID is the host's well-known context id, VMADDR_CID_HOST of vsock(7).
const hostCID = 2

// headerSize is the size of struct virtio_vsock_hdr (virtio 1.2, 5.10.6).
const headerSize = 44

// socketStream is VIRTIO_VSOCK_TYPE_STREAM, the only socket type offered.
const socketStream = 1

// op is what a packet does (virtio 1.2, 5.10.6, enum virtio_vsock_op).
type op uint16

const (
	opRequest       op = 1 // open a connection
	opResponse      op = 2 // accept it
	opReset         op = 3 // refuse it, or end it at once
	opShutdown      op = 4 // the sender will not receive, or not send, any more
	opData          op = 5 // payload ("RW")
	opCreditUpdate  op = 6 // only tells buf_alloc and fwd_cnt
	opCreditRequest op = 7 // asks for opCreditUpdate
)

// The flags of opShutdown (virtio 1.2, 5.10.6.5).
const (
	shutReceive = 1 // the sender will not receive any more
	shutSend    = 2 // the sender will not send any more
	shutBoth    = shutReceive | shutSend
)

// header is struct virtio_vsock_hdr.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	length           uint32 // bytes of payload after the header
	socketType       uint16
	op               op
	flags            uint32
	bufAlloc         uint32 // sender's receive buffer, bytes
	fwdCnt           uint32 // bytes of payload the sender has consumed so far, modulo 2^32
}

// parseHeader decodes a header. Every bit pattern is some header; what it says is
// for the caller to check.
func parseHeader(b *[headerSize]byte) header {
	le := binary.LittleEndian
	return header{
		srcCID:     le.Uint64(b[0:]),
		dstCID:     le.Uint64(b[8:]),
		srcPort:    le.Uint32(b[16:]),
		dstPort:    le.Uint32(b[20:]),
		length:     le.Uint32(b[24:]),
		socketType: le.Uint16(b[28:]),
		op:         op(le.Uint16(b[30:])),
		flags:      le.Uint32(b[32:]),
		bufAlloc:   le.Uint32(b[36:]),
		fwdCnt:     le.Uint32(b[40:]),
	}
}

// encode is the inverse of parseHeader.
func (h *header) encode(b *[headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], h.srcCID)
	le.PutUint64(b[8:], h.dstCID)
	le.PutUint32(b[16:], h.srcPort)
	le.PutUint32(b[20:], h.dstPort)
	le.PutUint32(b[24:], h.length)
	le.PutUint16(b[28:], h.socketType)
	le.PutUint16(b[30:], uint16(h.op))
	le.PutUint32(b[32:], h.flags)
	le.PutUint32(b[36:], h.bufAlloc)
	le.PutUint32(b[40:], h.fwdCnt)
}

// String renders a packet for debug logs.
func (h header) String() string {
	return fmt.Sprintf("%d:%d > %d:%d type %d op %d flags %#x len %d buf_alloc %d fwd_cnt %d",
		h.srcCID, h.srcPort, h.dstCID, h.dstPort, h.socketType, h.op, h.flags, h.length, h.bufAlloc, h.fwdCnt)
}
