package vhostvsock

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// chunkSize is the unit in which data waits for a slow reader, bytes.
const chunkSize = 32 << 10

// chunks recycles the memory of backlogs.
var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// backlog is data from the guest that its socket did not take yet. The zero value
// is empty and holds no memory. Its user bounds its size.
type backlog struct {
	chunks []*[chunkSize]byte
	start  int // of the data in the first chunk
	size   int // bytes held
}

// append copies the pieces of vec behind what is held.
func (b *backlog) append(vec [][]byte) {
	for _, p := range vec {
		for len(p) > 0 {
			end := b.start + b.size
			if end == len(b.chunks)*chunkSize {
				b.chunks = append(b.chunks, chunks.Get().(*[chunkSize]byte))
			}
			n := copy(b.chunks[len(b.chunks)-1][end%chunkSize:], p)
			b.size += n
			p = p[n:]
		}
	}
}

// pieces appends what is held to vec, in order.
func (b *backlog) pieces(vec [][]byte) [][]byte {
	start, left := b.start, b.size
	for _, c := range b.chunks {
		n := min(chunkSize-start, left)
		vec = append(vec, c[start:start+n])
		left -= n
		start = 0
	}
	return vec
}

// discard forgets the first n bytes.
func (b *backlog) discard(n int) {
	b.start += n
	b.size -= n
	for len(b.chunks) > 0 && (b.start >= chunkSize || b.size == 0) {
		chunks.Put(b.chunks[0])
		b.chunks[0] = nil
		b.chunks = b.chunks[1:]
		b.start = max(0, b.start-chunkSize)
	}
	if b.size == 0 {
		*b = backlog{}
	}
}

// drain writes the backlog to the socket fd and closes it: the rest of a connection
// that the guest has ended, while its reader is still busy. It owns fd, which is
// shut down for reading. Ends at the latest when the Conn at the other end is closed.
func (b *backlog) drain(fd int, end *endState, reset bool) {
	f := os.NewFile(uintptr(fd), "vsock")
	for b.size > 0 {
		n, err := f.Write(b.pieces(nil)[0])
		if err != nil {
			break
		}
		b.discard(n)
	}
	b.discard(b.size)
	end.set(fd, reset)
	_ = f.Close()
}

// sendSome moves what the socket takes. Returns the bytes moved, and the error of
// the socket, unix.EAGAIN if it is full.
func (b *backlog) sendSome(fd int, io *vector) (int, error) {
	var room [16][]byte
	n, err := io.send(fd, b.pieces(room[:0]))
	b.discard(n)
	if err == nil && b.size > 0 {
		err = unix.EAGAIN
	}
	return n, err
}
