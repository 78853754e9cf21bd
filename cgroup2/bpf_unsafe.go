package cgroup2

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bpf(2) takes a union whose size grows with the kernel. A size larger than
// the kernel's is fine if the excess is zero; a smaller one is not: kernels 6.17
// to 7.1 write answers of BPF_PROG_QUERY behind it. So all of ours have this
// one size, which is larger than any so far.
const bpfAttrSize = 256

// progLoadAttr is the part of union bpf_attr for BPF_PROG_LOAD.
type progLoadAttr struct {
	progType, insnCnt     uint32
	insns, license        unsafe.Pointer
	logLevel, logSize     uint32
	logBuf                unsafe.Pointer
	kernVersion, flags    uint32
	name                  [16]byte
	ifindex, expectedType uint32
	_                     [bpfAttrSize - 72]byte
}

// progAttachAttr is the part for BPF_PROG_ATTACH and BPF_PROG_DETACH.
type progAttachAttr struct {
	target, prog, attachType, flags, replace uint32
	_                                        [bpfAttrSize - 20]byte
}

// The compiler refuses an index that is not 0.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(progLoadAttr{})-bpfAttrSize]
	_ = [1]struct{}{}[unsafe.Sizeof(progAttachAttr{})-bpfAttrSize]
)

// loadDeviceProgram loads a BPF_PROG_TYPE_CGROUP_DEVICE program (Linux 4.15).
// The caller owns the descriptor, which is close-on-exec.
func loadDeviceProgram(code []byte) (int, error) {
	license := [...]byte{'A', 'p', 'a', 'c', 'h', 'e', '-', '2', '.', '0', 0}
	attr := progLoadAttr{
		progType:     unix.BPF_PROG_TYPE_CGROUP_DEVICE,
		insnCnt:      uint32(len(code) / insnBytes),
		insns:        unsafe.Pointer(unsafe.SliceData(code)),
		license:      unsafe.Pointer(&license[0]),
		expectedType: unix.BPF_CGROUP_DEVICE,
	}
	copy(attr.name[:15], "vminit_devices")
	// The verifier gives up with EAGAIN when a signal comes, and Go's scheduler
	// sends some.
	for range 16 {
		fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr))
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// attachDeviceProgram attaches prog to the cgroup target, next to whatever is
// attached already; in place of the program replace (Linux 5.6) unless that is
// negative.
func attachDeviceProgram(target, prog, replace int) error {
	attr := progAttachAttr{
		target: uint32(target), prog: uint32(prog),
		attachType: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI,
	}
	if replace >= 0 {
		attr.flags |= unix.BPF_F_REPLACE
		attr.replace = uint32(replace)
	}
	_, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr))
	return err
}

func detachDeviceProgram(target, prog int) error {
	attr := progAttachAttr{target: uint32(target), prog: uint32(prog), attachType: unix.BPF_CGROUP_DEVICE}
	_, err := bpf(unix.BPF_PROG_DETACH, unsafe.Pointer(&attr))
	return err
}

// bpf is bpf(2). attr must point to bpfAttrSize bytes.
func bpf(cmd int, attr unsafe.Pointer) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), bpfAttrSize)
	runtime.KeepAlive(attr)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}
