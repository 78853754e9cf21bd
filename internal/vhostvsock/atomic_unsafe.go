package vhostvsock

import (
	"sync/atomic"
	"unsafe"
)

// Loads and stores of ring words that the guest reads and writes at the same time.
// Go's atomics are sequentially consistent, which gives the rings every order they
// need: entries are seen before the index that announces them, and a flag stored
// before an index loaded (virtio 1.2, 2.7.13 and 2.7.14). They know only 32-bit
// words, so 16-bit fields go through the aligned word they are in. Little-endian
// hosts only; New checks.

// load16 loads the uint16 at b[0:2], which must be 2-byte aligned in memory.
func load16(b []byte) uint16 {
	_ = b[1]
	p := unsafe.Pointer(&b[0])
	odd := uintptr(p) & 2 // the upper half of its word
	w := atomic.LoadUint32((*uint32)(unsafe.Add(p, -int(odd))))
	return uint16(w >> (odd * 8))
}

// store32 stores the uint32 at b[0:4], which must be 4-byte aligned in memory.
func store32(b []byte, v uint32) {
	_ = b[3]
	atomic.StoreUint32((*uint32)(unsafe.Pointer(&b[0])), v)
}

// aligned says whether b starts at a multiple of n bytes in memory.
func aligned(b []byte, n uintptr) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%n == 0
}
