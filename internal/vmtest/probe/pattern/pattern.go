// Package pattern is the stream that "probe burst" writes and a test compares
// with: lines of 16 bytes that hold their own offset in hexadecimal, so that a
// missing or repeated piece shows where it is.
package pattern

import (
	"bytes"
	"fmt"
	"io"
)

const lineLen = 16

// Fill fills p with the bytes of the stream from offset off on.
func Fill(p []byte, off int64) {
	var line [lineLen]byte
	for len(p) > 0 {
		start := off % lineLen
		makeLine(&line, off-start)
		n := copy(p, line[start:])
		p, off = p[n:], off+int64(n)
	}
}

// makeLine is fmt.Sprintf("%015x\n", off), faster.
func makeLine(line *[lineLen]byte, off int64) {
	const digits = "0123456789abcdef"
	line[lineLen-1] = '\n'
	for i := lineLen - 2; i >= 0; i-- {
		line[i] = digits[off&15]
		off >>= 4
	}
}

// NewReader returns the first n bytes of the stream.
func NewReader(n int64) io.Reader { return io.LimitReader(&reader{}, n) }

type reader struct{ off int64 }

func (r *reader) Read(p []byte) (int, error) {
	Fill(p, r.off)
	r.off += int64(len(p))
	return len(p), nil
}

// Check reads r to its end and tells where it differs from the first n bytes
// of the stream.
func Check(r io.Reader, n int64) error {
	got, want := make([]byte, 32<<10), make([]byte, 32<<10)
	var off int64
	for {
		k, err := r.Read(got)
		Fill(want[:k], off)
		if !bytes.Equal(got[:k], want[:k]) {
			for i := range k {
				if got[i] != want[i] {
					return fmt.Errorf("byte %d is %q, not %q (near %q)", off+int64(i), got[i], want[i], got[i:min(k, i+2*lineLen)])
				}
			}
		}
		off += int64(k)
		if off > n {
			return fmt.Errorf("more than %d bytes", n)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if off < n {
		return fmt.Errorf("ends after %d of %d bytes", off, n)
	}
	return nil
}
