package microvm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"vminit/internal/sys"
)

// maxVmlinux bounds an unpacked kernel in bytes; Debian's have 50 to 80 MB.
const maxVmlinux = 512 << 20

// UnpackKernel writes the ELF image inside a bzImage to w. QEMU starts it at its
// PVH entry, without the kernel's own unpacking: under TCG that is a fifth of
// the time until PID 1. It is ErrUnsupported if the image has no such entry or
// is packed in another way than LZ4, zstd or gzip.
func UnpackKernel(w io.Writer, bzImage []byte) error {
	payload, err := bzImagePayload(bzImage)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := unpack(&out, payload); err != nil {
		return fmt.Errorf("unpack kernel: %w", err)
	}
	if err := checkPVH(out.Bytes()); err != nil {
		return err
	}
	_, err = w.Write(out.Bytes())
	return err
}

// bzImagePayload finds the compressed kernel by the boot protocol's header
// (the kernel's Documentation/x86/boot.rst: version 2.08 and later).
func bzImagePayload(image []byte) ([]byte, error) {
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" || binary.LittleEndian.Uint16(image[0x206:]) < 0x208 {
		return nil, sys.Unsupportedf("unpack kernel: not a bzImage of boot protocol 2.08 or later")
	}
	sectors := uint64(image[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	start := (sectors+1)*512 + uint64(binary.LittleEndian.Uint32(image[0x248:]))
	size := uint64(binary.LittleEndian.Uint32(image[0x24c:]))
	if size < 8 || start+size > uint64(len(image)) {
		return nil, sys.Invalidf("unpack kernel: the payload (%d bytes at %d) is not within the %d bytes of the image", size, start, len(image))
	}
	return image[start : start+size], nil
}

// unpack recognizes the packing by its magic. Behind what is packed stand four
// bytes of its size, which gzip has itself.
func unpack(w io.Writer, payload []byte) error {
	limited := func(r io.Reader) error {
		n, err := io.Copy(w, io.LimitReader(r, maxVmlinux+1))
		if err == nil && n > maxVmlinux {
			err = sys.Invalidf("more than %d bytes", maxVmlinux)
		}
		return err
	}
	body := payload[:len(payload)-4]
	switch {
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}):
		return unpackLZ4(w, body, maxVmlinux)
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxVmlinux))
		if err != nil {
			return err
		}
		defer z.Close()
		return limited(z)
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return err
		}
		z.Multistream(false)
		return limited(z)
	}
	return sys.Unsupportedf("packed in a way that is not known (% x)", payload[:min(6, len(payload))])
}

// xenPhys32Entry is the note that holds the PVH entry (Xen's elfnote.h).
const xenPhys32Entry = 18

// checkPVH makes sure that QEMU will find an entry.
func checkPVH(vmlinux []byte) error {
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return sys.Mark(sys.ErrUnsupported, fmt.Errorf("unpack kernel: %w", err))
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return sys.Unsupportedf("unpack kernel: it is for %v", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes, err := io.ReadAll(p.Open())
		if err == nil && hasNote(notes, "Xen\x00", xenPhys32Entry) {
			return nil
		}
	}
	return sys.Unsupportedf("unpack kernel: it has no PVH entry (CONFIG_PVH)")
}

// hasNote looks through a segment of notes, elf(5).
func hasNote(notes []byte, name string, kind uint32) bool {
	align := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
	for len(notes) >= 12 {
		nameSize, descSize := binary.LittleEndian.Uint32(notes), binary.LittleEndian.Uint32(notes[4:])
		got := binary.LittleEndian.Uint32(notes[8:])
		notes = notes[12:]
		if align(nameSize)+align(descSize) > uint64(len(notes)) {
			return false
		}
		if got == kind && string(notes[:nameSize]) == name {
			return true
		}
		notes = notes[align(nameSize)+align(descSize):]
	}
	return false
}
