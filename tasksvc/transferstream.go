package tasksvc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"vminit/internal/sys"
)

// The streams of a transfer carry containerd's messages for that
// (containerd.types.transfer.Data and WindowUpdate, each in a
// google.protobuf.Any) as frames: a length, four bytes big endian, and the Any. A
// frame of length 0 is the end. A sender may send as many bytes of data as the
// receiver has asked for in WindowUpdates.
//
// The messages have one field each, so they are coded by hand: the package of
// all transfer types would cost 50 KB.
const (
	typeData         = "containerd.types.transfer.Data"
	typeWindowUpdate = "containerd.types.transfer.WindowUpdate"

	transferChunk    = 32 << 10 // the most data in a message that containerd sends
	transferWindow   = 8 * transferChunk
	maxTransferFrame = 1 << 20
)

// writeFrame sends one message.
func writeFrame(w io.Writer, typeURL string, value []byte) error {
	b := make([]byte, 4, 4+len(typeURL)+len(value)+16)
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendString(b, typeURL)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	b = protowire.AppendBytes(b, value)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	_, err := w.Write(b)
	return err
}

// readFrame receives one message; io.EOF is the end that the sender has said.
func readTransferFrame(r io.Reader) (typeName string, value []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return "", nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 {
		return "", nil, io.EOF
	}
	if n > maxTransferFrame {
		return "", nil, sys.Invalidf("transfer stream: a message of %d bytes; at most %d are allowed", n, maxTransferFrame)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return "", nil, io.ErrUnexpectedEOF
	}
	url, value, err := parseAny(b)
	return url[strings.LastIndexByte(url, '/')+1:], value, err
}

// parseAny decodes a google.protobuf.Any.
func parseAny(b []byte) (url string, value []byte, err error) {
	err = eachField(b, func(num protowire.Number, _ uint64, data []byte) {
		switch num {
		case 1:
			url = string(data)
		case 2:
			value = data
		}
	})
	return url, value, err
}

// eachField goes through the fields of a message; of varints v is set, of
// strings, bytes and messages data.
func eachField(b []byte, field func(num protowire.Number, v uint64, data []byte)) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return sys.Invalidf("malformed message: %w", protowire.ParseError(n))
		}
		b = b[n:]
		var v uint64
		var data []byte
		switch typ {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			data, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return sys.Invalidf("malformed message: %w", protowire.ParseError(n))
		}
		field(num, v, data)
		b = b[n:]
	}
	return nil
}

// TransferReader receives data on a transfer stream, asking for it as it is
// read. Read returns io.EOF once the sender has said that this is all, and
// io.ErrUnexpectedEOF if it has gone without a word.
type TransferReader struct {
	rw     io.ReadWriter
	window int64
	rest   []byte
	err    error
}

// NewTransferReader reads from a stream that the other side sends on.
func NewTransferReader(rw io.ReadWriter) *TransferReader { return &TransferReader{rw: rw} }

// Read implements io.Reader.
func (r *TransferReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.err = r.receive()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *TransferReader) receive() error {
	if r.window <= transferWindow/2 {
		update := protowire.AppendTag(nil, 1, protowire.VarintType)
		if err := writeFrame(r.rw, typeWindowUpdate, protowire.AppendVarint(update, transferWindow)); err != nil {
			return err
		}
		r.window += transferWindow
	}
	name, value, err := readTransferFrame(r.rw)
	if err != nil || name != typeData {
		return err // what is not known is passed over, as containerd does
	}
	err = eachField(value, func(num protowire.Number, _ uint64, data []byte) {
		if num == 1 {
			r.rest = data
		}
	})
	r.window -= int64(len(r.rest))
	return err
}

// TransferWriter sends data on a transfer stream, as much as the receiver asks
// for. CloseWrite says that this is all.
type TransferWriter struct {
	rw     io.ReadWriter
	credit int64
}

// NewTransferWriter writes to a stream that the other side receives on.
func NewTransferWriter(rw io.ReadWriter) *TransferWriter { return &TransferWriter{rw: rw} }

// Write implements io.Writer.
func (w *TransferWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		for w.credit <= 0 {
			if err := w.awaitCredit(); err != nil {
				return n, err
			}
		}
		piece := p[:min(int64(len(p)), w.credit, transferChunk)]
		data := protowire.AppendTag(make([]byte, 0, len(piece)+8), 1, protowire.BytesType)
		if err := writeFrame(w.rw, typeData, protowire.AppendBytes(data, piece)); err != nil {
			return n, err
		}
		n += len(piece)
		w.credit -= int64(len(piece))
		p = p[len(piece):]
	}
	return n, nil
}

func (w *TransferWriter) awaitCredit() error {
	name, value, err := readTransferFrame(w.rw)
	if errors.Is(err, io.EOF) {
		return errors.New("the receiver wants no more")
	}
	if err != nil || name != typeWindowUpdate {
		return err
	}
	return eachField(value, func(num protowire.Number, v uint64, _ []byte) {
		if num == 1 {
			w.credit += max(int64(int32(v)), 0)
		}
	})
}

// CloseWrite says that everything has been sent.
func (w *TransferWriter) CloseWrite() error {
	_, err := w.rw.Write(make([]byte, 4))
	if err != nil {
		return fmt.Errorf("end of a transfer: %w", err)
	}
	return nil
}
