package nsexec

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An arena is the memory of one program: registers, launch frame, instructions
// and data. It lives outside the Go heap because the child, which has no Go
// heap, reads it, and because its addresses must not move. It is reserved, not
// committed: pages cost memory when touched.
//
//	0       registers
//	4096    launch frame and prologue (written by Start), then instructions
//	1 MiB   data
const (
	frameOff    = 4096
	prologueOff = frameOff + 512
	maxCloses   = 320            // instructions that Start puts before the program to close files,
	maxPrologue = maxCloses + 64 // and with those for signals
	insnOff     = prologueOff + maxPrologue*insnSize
	dataOff     = 1 << 20
	arenaSize   = 8 << 20
	dataSize    = arenaSize - dataOff
	maxInsns    = (dataOff - insnOff) / insnSize
)

type arena struct {
	b    []byte
	used int // bytes of data
}

// newArena maps shared memory: it shows a name in /proc/self/maps, so that it
// is told apart from the Go heap (dontfork.go), and fork need not copy it.
func newArena() (arena, error) {
	b, err := unix.Mmap(-1, 0, arenaSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	return arena{b: b}, err
}

func (a *arena) close() error {
	if a.b == nil {
		return nil
	}
	b := a.b
	a.b = nil
	return unix.Munmap(b)
}

// scrub makes the memory as good as new: environments may hold secrets, and
// registers and buffers start as zero. Instructions are written whole.
func (a *arena) scrub() {
	clear(a.b[:8*numRegs])
	clear(a.b[dataOff : dataOff+a.used])
	a.used = 0
}

func (a *arena) addr(off int) uint64 { return uint64(uintptr(unsafe.Pointer(&a.b[off]))) }

// at returns the memory from an address of this arena to its end, nil for any
// other number.
func (a *arena) at(addr uint64) []byte {
	off := addr - a.addr(0)
	if off >= uint64(len(a.b)) {
		return nil
	}
	return a.b[off:]
}

func (a *arena) insn(i int) *insn {
	return (*insn)(unsafe.Pointer(&a.b[insnOff+i*insnSize]))
}

// prologue returns the slot of the i-th instruction before the program.
func (a *arena) prologue(i int) *insn {
	return (*insn)(unsafe.Pointer(&a.b[insnOff-(i+1)*insnSize]))
}

func (a *arena) frame() *frame { return (*frame)(unsafe.Pointer(&a.b[frameOff])) }

func (a *arena) setReg(r Reg, v uint64) { putWord(a.b[8*int(r):], v) }
func (a *arena) reg(r Reg) uint64       { return word(a.b[8*int(r):]) }

// alloc returns the address and the bytes of a new piece of data, 8-byte
// aligned, or nil when the arena is full.
func (a *arena) alloc(n int) (uint64, []byte) {
	if n < 0 || n > dataSize-a.used {
		return 0, nil
	}
	off := dataOff + a.used
	a.used = min((a.used+n+7)&^7, dataSize)
	if n == 0 {
		return a.addr(min(off, arenaSize-1)), a.b[off:off]
	}
	return a.addr(off), a.b[off : off+n : off+n]
}

func putWord(b []byte, v uint64) { binary.NativeEndian.PutUint64(b, v) }
func word(b []byte) uint64       { return binary.NativeEndian.Uint64(b) }
