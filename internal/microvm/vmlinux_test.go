package microvm

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"vminit/internal/initramfs"
	"vminit/internal/sys"
)

// The kernel that is installed is unpacked in TestBoot and benchmarks too; here
// it only must come out as an ELF image with an entry.
func TestUnpackInstalledKernel(t *testing.T) {
	path, _, err := initramfs.FindKernel()
	if err != nil {
		t.Skip(err)
	}
	image, err := os.ReadFile(path)
	require.NoError(t, err)
	var out bytes.Buffer
	require.NoError(t, UnpackKernel(&out, image))
	require.Equal(t, "\x7fELF", out.String()[:4])
	payload, err := bzImagePayload(image)
	require.NoError(t, err)
	require.EqualValues(t, binary.LittleEndian.Uint32(payload[len(payload)-4:]), out.Len())
}

// bzImage wraps a payload as the kernel's build does.
func bzImage(payload []byte) []byte {
	image := make([]byte, 1024, 1024+len(payload))
	image[0x1f1] = 1
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(len(payload)))
	return append(image, payload...)
}

func TestUnpackings(t *testing.T) {
	text := bytes.Repeat([]byte("kernel "), 5000)
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	_, _ = w.Write(text)
	require.NoError(t, w.Close())
	enc, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	zst := binary.LittleEndian.AppendUint32(enc.EncodeAll(text, nil), uint32(len(text)))
	// By hand: 7 literals, then a match 7 back of 4+15+n bytes, then 5 literals.
	long := []byte{0x7f, 'k', 'e', 'r', 'n', 'e', 'l', ' ', 7, 0}
	for n := len(text) - 7 - 5 - 4 - 15; ; n -= 255 {
		if n < 255 {
			long = append(long, byte(n))
			break
		}
		long = append(long, 255)
	}
	long = append(long, 0x50, 'r', 'n', 'e', 'l', ' ')
	lz4 := binary.LittleEndian.AppendUint32(nil, lz4LegacyMagic)
	lz4 = binary.LittleEndian.AppendUint32(lz4, uint32(len(long)))
	lz4 = binary.LittleEndian.AppendUint32(append(lz4, long...), uint32(len(text)))

	for name, packed := range map[string][]byte{"gzip": gz.Bytes(), "zstd": zst, "lz4": lz4} {
		payload, err := bzImagePayload(bzImage(packed))
		require.NoError(t, err, name)
		var out bytes.Buffer
		require.NoError(t, unpack(&out, payload), name)
		require.Equal(t, text, out.Bytes(), name)
		// What is inside is no kernel.
		require.ErrorIs(t, UnpackKernel(io.Discard, bzImage(packed)), sys.ErrUnsupported, name)
	}
	require.ErrorIs(t, UnpackKernel(io.Discard, bzImage([]byte("\xfd7zXZ\x00 and so on"))), sys.ErrUnsupported)
	require.ErrorIs(t, UnpackKernel(io.Discard, []byte("MZ")), sys.ErrUnsupported)
	cut := bzImage(lz4)
	require.ErrorIs(t, UnpackKernel(io.Discard, cut[:len(cut)-1]), sys.ErrInvalid)
}

func FuzzUnpackKernel(f *testing.F) {
	f.Add(bzImage([]byte("\x02\x21\x4c\x18\x06\x00\x00\x00\x1fa\x01\x00\x00\x00....")))
	f.Add(bzImage([]byte("\x1f\x8b........")))
	f.Fuzz(func(t *testing.T, image []byte) {
		if len(image) > 1<<16 {
			return
		}
		_ = UnpackKernel(io.Discard, image)
	})
}

func FuzzLZ4Block(f *testing.F) {
	f.Add([]byte{0x1f, 'a', 1, 0, 0, 0x50, 'a', 'b', 'c', 'd', 'e'})
	f.Fuzz(func(t *testing.T, src []byte) {
		out, err := lz4Block(make([]byte, 0, 1<<16), src)
		if (out == nil) == (err == nil) && len(src) > 0 {
			t.Fatalf("%d bytes, %v", len(out), err)
		}
		if len(out) > 1<<16 {
			t.Fatal("too much")
		}
	})
}

func FuzzHasNote(f *testing.F) {
	f.Add([]byte("\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00\x00\x00\x00\x01"))
	f.Fuzz(func(_ *testing.T, notes []byte) { hasNote(notes, "Xen\x00", xenPhys32Entry) })
}

func BenchmarkUnpackKernel(b *testing.B) {
	path, _, err := initramfs.FindKernel()
	if err != nil {
		b.Skip(err)
	}
	image, err := os.ReadFile(path)
	require.NoError(b, err)
	for b.Loop() {
		require.NoError(b, UnpackKernel(io.Discard, image))
	}
}
