package vsockstream

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"

	"vminit/internal/sys"
)

// Framing is how a stream's id travels in the handshake. In both framings the
// host speaks first, the guest echoes what it got, and raw bytes follow.
type Framing int

const (
	// FramingU32 is four bytes, big endian. In text (URIs, Claim, Open) the id
	// is its canonical decimal: "7", never "07". The guest refuses by closing.
	FramingU32 Framing = iota
	// FramingString is a length, four bytes big endian, and that many bytes of
	// id. The guest refuses with an error text framed alike, and closes.
	FramingString
)

// maxID bounds an id, and an error text, of FramingString in bytes.
const maxID = 4096

// String returns the name that ParseFraming reads.
func (f Framing) String() string {
	switch f {
	case FramingU32:
		return "u32"
	case FramingString:
		return "string"
	}
	return fmt.Sprintf("Framing(%d)", int(f))
}

// ParseFraming reads "u32" or "string".
func ParseFraming(s string) (Framing, error) {
	switch s {
	case "u32":
		return FramingU32, nil
	case "string":
		return FramingString, nil
	}
	return 0, sys.Invalidf("stream id framing %q is neither u32 nor string", s)
}

// encode returns the handshake frame of id, or an error if id does not fit the
// framing.
func (f Framing) encode(id string) ([]byte, error) {
	switch f {
	case FramingU32:
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil || strconv.FormatUint(n, 10) != id {
			return nil, sys.Invalidf("stream id %.64q is not a decimal number below 2^32 without leading zeros", id)
		}
		return binary.BigEndian.AppendUint32(nil, uint32(n)), nil
	case FramingString:
		if len(id) == 0 || len(id) > maxID {
			return nil, sys.Invalidf("stream id of %d bytes; want 1 to %d", len(id), maxID)
		}
		return encodeText(id), nil
	}
	return nil, sys.Invalidf("unknown %v", f)
}

// decode reads one frame from r and not a byte further. The id it returns is
// one that encode takes.
func (f Framing) decode(r io.Reader) (string, error) {
	switch f {
	case FramingU32:
		var b [4]byte
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return "", err
		}
		return strconv.FormatUint(uint64(binary.BigEndian.Uint32(b[:])), 10), nil
	case FramingString:
		id, err := decodeText(r)
		if err == nil && id == "" {
			err = sys.Invalidf("stream id is empty")
		}
		return id, err
	}
	return "", sys.Invalidf("unknown %v", f)
}

// encodeText frames a text of at most maxID bytes.
func encodeText(s string) []byte {
	b := make([]byte, 0, 4+len(s))
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// decodeText reads a framed text; the length is checked before allocating.
func decodeText(r io.Reader) (string, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxID {
		return "", sys.Invalidf("frame of %d bytes; at most %d are allowed", n, maxID)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	return string(b), nil
}
