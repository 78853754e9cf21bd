package microvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// errLZ4 is what makes no sense in a compressed block.
var errLZ4 = errors.New("lz4: corrupt block")

// lz4Legacy is the frame that the kernel's build makes (lz4 -l): a magic number,
// then blocks, each after its compressed size. Source: LZ4 frame format
// description, "Legacy frame", and LZ4 block format description.
const (
	lz4LegacyMagic = 0x184c2102
	lz4LegacyBlock = 8 << 20 // what a block unpacks to, bytes; the last one may be shorter
)

// unpackLZ4 writes what a legacy frame holds to w, at most limit bytes.
func unpackLZ4(w io.Writer, frame []byte, limit int) error {
	if len(frame) < 4 || binary.LittleEndian.Uint32(frame) != lz4LegacyMagic {
		return errors.New("lz4: not a legacy frame")
	}
	frame = frame[4:]
	block := make([]byte, 0, lz4LegacyBlock)
	for len(frame) >= 4 {
		size := binary.LittleEndian.Uint32(frame)
		frame = frame[4:]
		if uint64(size) > uint64(len(frame)) {
			return errLZ4
		}
		var err error
		if block, err = lz4Block(block[:0], frame[:size]); err != nil {
			return err
		}
		if limit -= len(block); limit < 0 {
			return fmt.Errorf("lz4: unpacks to more than is allowed")
		}
		if _, err := w.Write(block); err != nil {
			return err
		}
		frame = frame[size:]
	}
	return nil
}

// lz4Block appends what src unpacks to to dst, which must have room for all of
// it: no more than cap(dst) bytes come out.
func lz4Block(dst, src []byte) ([]byte, error) {
	for len(src) > 0 {
		token := src[0]
		src = src[1:]
		literals, rest, ok := lz4Length(int(token>>4), src)
		if !ok || literals > len(rest) || literals > cap(dst)-len(dst) {
			return nil, errLZ4
		}
		dst, src = append(dst, rest[:literals]...), rest[literals:]
		if len(src) == 0 {
			return dst, nil // the last sequence has no match
		}
		if len(src) < 2 {
			return nil, errLZ4
		}
		offset := int(binary.LittleEndian.Uint16(src))
		match, rest, ok := lz4Length(int(token&15), src[2:])
		match += 4
		if !ok || offset == 0 || offset > len(dst) || match > cap(dst)-len(dst) {
			return nil, errLZ4
		}
		dst, src = lz4Match(dst, offset, match), rest
	}
	return dst, nil
}

// lz4Length completes a length of which a token holds the first four bits.
func lz4Length(n int, src []byte) (length int, rest []byte, ok bool) {
	if n < 15 {
		return n, src, true
	}
	for i, b := range src {
		n += int(b)
		if b < 255 {
			return n, src[i+1:], n <= lz4LegacyBlock
		}
	}
	return 0, nil, false
}

// lz4Match repeats n bytes from offset back, which may overlap what they make.
func lz4Match(dst []byte, offset, n int) []byte {
	for n > 0 {
		from := len(dst) - offset
		chunk := min(n, offset)
		dst = append(dst, dst[from:from+chunk]...)
		n -= chunk
	}
	return dst
}
