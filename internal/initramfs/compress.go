package initramfs

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"vminit/internal/sys"
)

// Values of [Config.Compression]. The kernel unpacks beside other work, so a
// guest starts equally soon with any of them. Under TCG, for 8 MB of init and
// 2.3 MB of modules: 4.0 MB and 70 ms of CPU time for zstd, 4.2 MB and 100 ms
// for gzip, 10 MB and nothing for none. Building takes 120, 160 and 25 ms, so
// none is best for an image that is used once.
const (
	Zstd = "zstd" // needs CONFIG_RD_ZSTD (since kernel 5.9)
	Gzip = "gzip" // every kernel that has initramfs at all
	None = "none"
)

// newCompressor returns a writer that compresses to w. Closing it does not
// close w.
func newCompressor(w io.Writer, name string) (io.WriteCloser, error) {
	switch name {
	case "", Zstd:
		// One goroutine, so that the bytes do not depend on scheduling. The
		// kernel allocates the window while it unpacks: keep it modest.
		return zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedDefault),
			zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(4<<20))
	case Gzip:
		return gzip.NewWriterLevel(w, gzip.DefaultCompression)
	case None:
		return nopCloser{w}, nil
	}
	return nil, sys.Invalidf("compression %q: want %s, %s or %s", name, Zstd, Gzip, None)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// countingWriter counts the bytes that went through.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	if err != nil {
		return n, fmt.Errorf("write initramfs: %w", err)
	}
	return n, nil
}
