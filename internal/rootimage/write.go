package rootimage

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// errChanged: the image would not hold what its inodes say.
var errChanged = errors.New("it changed while it was read: try again")

// writer writes a tree that has its layout.
type writer struct {
	*tree
	out      *os.File
	sum      hash.Hash // of all blocks that are not zero
	meta     []byte    // the first blocks of the image
	buf      []byte
	done     int64 // bytes of file contents
	progress func(done, total int64)
}

// write fills the output file, which must be empty.
func (w *writer) write(ctx context.Context) (uuid [16]byte, err error) {
	w.meta = make([]byte, w.metaSize)
	w.buf = make([]byte, 1<<20)
	if err := w.out.Truncate(w.blocks * blockSize); err != nil {
		return uuid, err
	}
	for _, n := range w.nodes {
		if err := ctx.Err(); err != nil {
			return uuid, err
		}
		if err := w.node(ctx, n); err != nil {
			return uuid, err
		}
	}
	sb := superblock{rootNID: uint16(w.nodes[0].nid()), inodes: uint64(len(w.nodes)), blocks: uint32(w.blocks)}
	sb.put(w.meta[superOffset:])
	w.sum.Write(w.meta)
	copy(sb.uuid[:], w.sum.Sum(nil))
	sb.uuid[6] = sb.uuid[6]&0x0f | 0x80 // version 8, "custom" (RFC 9562)
	sb.uuid[8] = sb.uuid[8]&0x3f | 0x80
	sb.put(w.meta[superOffset:])
	// The kernel starts from all ones and does not invert the result.
	crc := ^crc32.Checksum(w.meta[superOffset:blockSize], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(w.meta[superOffset+4:], crc)
	_, err = w.out.WriteAt(w.meta, 0)
	return sb.uuid, err
}

// node writes one inode with what follows it, and its data.
func (w *writer) node(ctx context.Context, n *node) error {
	at := w.meta[n.offset:]
	n.put(at)
	n.putXattrs(at[inodeSize:])
	tail := at[inodeSize+n.xattrSize():][:n.tail]
	switch n.kind() {
	case unix.S_IFREG:
		return w.file(ctx, n, tail)
	case unix.S_IFDIR:
		return w.bytes(n, dirData(n.entries), tail)
	case unix.S_IFLNK:
		return w.bytes(n, []byte(n.target), tail)
	}
	return nil
}

// bytes writes data that is in memory.
func (w *writer) bytes(n *node, data, tail []byte) error {
	copy(tail, data[n.full:])
	padded := make([]byte, roundUp(n.full, blockSize))
	copy(padded, data[:n.full])
	return w.put(n.start, padded)
}

// file copies a file's contents. Holes are not read.
func (w *writer) file(ctx context.Context, n *node, tail []byte) error {
	if n.size == 0 {
		return nil
	}
	before := w.done
	fd, err := unix.Open(n.path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: n.path, Err: err}
	}
	f := os.NewFile(uintptr(fd), n.path)
	defer f.Close()
	for off := int64(0); off < n.full; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if off, err = nextData(f, off); err != nil {
			return err
		}
		if off >= n.full {
			break
		}
		size := min(n.full-off, int64(len(w.buf)))
		part := w.buf[:roundUp(size, blockSize)]
		clear(part[size:])
		if err := readAt(f, part[:size], off); err != nil {
			return err
		}
		if err := w.put(n.start+off/blockSize, part); err != nil {
			return err
		}
		off += size
		w.report(before + off)
	}
	w.report(before + n.size)
	return readAt(f, tail, n.full)
}

// report tells the progress.
func (w *writer) report(done int64) {
	w.done = done
	if w.progress != nil {
		w.progress(w.done, w.dataSize)
	}
}

// nextData is the start of the block with the next data from off on, or beyond
// the file. File systems that do not know holes say off.
func nextData(f *os.File, off int64) (int64, error) {
	at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no more data, or the file is shorter now
		return 1<<63 - 1, nil
	case errors.Is(err, unix.EINVAL):
		return off, nil
	case err != nil:
		return 0, &os.PathError{Op: "seek", Path: f.Name(), Err: err}
	}
	return max(at&^(blockSize-1), off), nil
}

// readAt fills p or fails.
func readAt(f *os.File, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", f.Name(), errChanged)
	}
	return err
}

// put writes whole blocks. Those that are zero stay holes, and do not go into
// the sum, so that it does not matter whether they were holes before.
func (w *writer) put(block int64, data []byte) error {
	var zero [blockSize]byte
	for len(data) > 0 {
		n := 0 // bytes up to the next zero block
		for n < len(data) && !bytes.Equal(data[n:n+blockSize], zero[:]) {
			n += blockSize
		}
		if n > 0 {
			if err := w.putRun(block, data[:n]); err != nil {
				return err
			}
		}
		n = min(n+blockSize, len(data))
		block, data = block+int64(n/blockSize), data[n:]
	}
	return nil
}

func (w *writer) putRun(block int64, data []byte) error {
	var number [8]byte
	for i := 0; i < len(data); i += blockSize {
		binary.LittleEndian.PutUint64(number[:], uint64(block)+uint64(i/blockSize))
		w.sum.Write(number[:])
		w.sum.Write(data[i : i+blockSize])
	}
	_, err := w.out.WriteAt(data, block*blockSize)
	return err
}
