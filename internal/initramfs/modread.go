package initramfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"vminit/internal/sys"
)

// maxModule bounds a module's size once decompressed. The largest in use (GPU
// drivers with all symbols) stay below it.
const maxModule = 256 << 20

// plainName is the path of a module without the ending of its compression.
func plainName(p string) string {
	switch ext := path.Ext(p); ext {
	case ".gz", ".zst", ".xz":
		return p[:len(p)-len(ext)]
	}
	return p
}

// readModule reads a module, decompressed: the kernel can only do that itself
// where CONFIG_MODULE_DECOMPRESS is set, and the archive is compressed anyway.
func readModule(p string) ([]byte, error) {
	raw, err := os.ReadFile(p)
	if err != nil {
		return nil, fmt.Errorf("kernel module: %w", err)
	}
	var r io.Reader
	switch path.Ext(p) {
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(raw))
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(raw))
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(bytes.NewReader(raw), zstd.WithDecoderConcurrency(1)); err == nil {
			defer d.Close()
			r = d
		}
	default:
		r = bytes.NewReader(raw)
	}
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", p, err)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("kernel module %s: %w", p, err)
	}
	if len(data) > maxModule {
		return nil, sys.Invalidf("kernel module %s: larger than %d MiB", p, maxModule>>20)
	}
	if !bytes.HasPrefix(data, []byte("\x7fELF")) {
		return nil, sys.Invalidf("kernel module %s: not an ELF file", p)
	}
	return data, nil
}

// stripSignature cuts off what the kernel build appended: the PKCS#7 message,
// struct module_signature whose last four bytes are the message's length
// (big-endian), and a magic line. Source: include/linux/module_signature.h.
func stripSignature(data []byte) []byte {
	const tail = 12 // sizeof(struct module_signature)
	d, ok := bytes.CutSuffix(data, []byte("~Module signature appended~\n"))
	if !ok || len(d) < tail {
		return data
	}
	n := int64(binary.BigEndian.Uint32(d[len(d)-4:]))
	if n > int64(len(d)-tail) {
		return data
	}
	return d[:int64(len(d)-tail)-n]
}

// emptyBTF takes a module's own type information away: the kernel looks for a
// section .BTF of any size and reads through all of it (kernel/bpf/btf.c,
// btf_module_notify), which under TCG is a good part of loading a module. Only
// the section's size is set to zero. What is not a 64-bit little-endian ELF file
// stays as it is.
func emptyBTF(data []byte) []byte {
	le := binary.LittleEndian
	if len(data) < 64 || !bytes.HasPrefix(data, []byte("\x7fELF\x02\x01")) {
		return data
	}
	table, size, n, names := le.Uint64(data[0x28:]), uint64(le.Uint16(data[0x3a:])), uint64(le.Uint16(data[0x3c:])), uint64(le.Uint16(data[0x3e:]))
	end := uint64(len(data))
	if size < 64 || table > end || n*size > end-table || names >= n {
		return data
	}
	header := func(i uint64) []byte { return data[table+i*size:][:size] }
	text := header(names)
	from, length := le.Uint64(text[0x18:]), le.Uint64(text[0x20:])
	if from > end || length > end-from {
		return data
	}
	strtab := data[from:][:length]
	for i := range n {
		h := header(i)
		if name := uint64(le.Uint32(h)); name < length && bytes.HasPrefix(strtab[name:], []byte(".BTF\x00")) {
			le.PutUint64(h[0x20:], 0)
		}
	}
	return data
}
