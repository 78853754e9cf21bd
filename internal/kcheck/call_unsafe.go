package kcheck

import (
	"encoding/binary"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call makes a system call. Arguments are integers, byte slices (their address;
// nil is NULL) or strings (the address of a copy that ends in NUL).
func call(nr uintptr, args ...any) (int, error) {
	var pin runtime.Pinner
	defer pin.Unpin()
	var a [6]uintptr
	for i, v := range args {
		switch v := v.(type) {
		case int:
			a[i] = uintptr(v)
		case uint32:
			a[i] = uintptr(v)
		case uint64:
			a[i] = uintptr(v)
		case []byte:
			if len(v) > 0 {
				pin.Pin(&v[0])
				a[i] = uintptr(unsafe.Pointer(&v[0]))
			}
		case string:
			b := append([]byte(v), 0)
			pin.Pin(&b[0])
			a[i] = uintptr(unsafe.Pointer(&b[0]))
		default:
			panic("kcheck: argument of a type that call does not know")
		}
	}
	r, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// try is call for those whose result does not matter.
func try(nr uintptr, args ...any) error {
	_, err := call(nr, args...)
	return err
}

// address pins b, which must not be empty, until the function it returns is
// called, for structures that hold pointers.
func address(b []byte) (addr uint64, unpin func()) {
	pin := new(runtime.Pinner)
	pin.Pin(&b[0])
	return uint64(uintptr(unsafe.Pointer(&b[0]))), pin.Unpin
}

// words lays 64-bit words out as structures of the kernel have them.
func words(w ...uint64) []byte {
	var b []byte
	for _, v := range w {
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	return b
}

// halves is words for 32 bits.
func halves(w ...uint32) []byte {
	var b []byte
	for _, v := range w {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}
