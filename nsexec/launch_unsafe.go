package nsexec

import (
	"math"
	"unsafe"
)

// cloneArgs is struct clone_args of clone3(2), size version 2 (Linux 5.7).
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

// frame is what cloneAndRun works from. It lives in the program's arena; its
// layout is known to launch_*.s.
type frame struct {
	clone   cloneArgs
	pc, end uint64 // addresses of the first instruction and of the one after the last
	regs    uint64 // address of the registers
	pidns   int64  // fd whose pid namespace the child is born into, or -1
	selfns  int64  // our own pidfd, to come back
	oldmask uint64
	allmask uint64
	pidfd   int32 // the kernel's answer
}

// cloneAndRun blocks all signals, makes the child with clone3 and unblocks them.
// The child interprets the program and never returns; the parent gets the
// child's pid or -errno.
//
//go:noescape
func cloneAndRun(f *frame) int64

// prepare fills the frame for a launch whose prologue has n instructions.
func (a *arena) prepare(flags uint64, cgroup, pidns, selfns, prologue, insns int) *frame {
	f := a.frame()
	*f = frame{
		pc:      a.addr(insnOff - prologue*insnSize),
		end:     a.addr(insnOff + insns*insnSize),
		regs:    a.addr(0),
		pidns:   int64(pidns),
		selfns:  int64(selfns),
		allmask: math.MaxUint64,
	}
	f.clone = cloneArgs{flags: flags, pidfd: uint64(uintptr(unsafe.Pointer(&f.pidfd))), exitSignal: sigchld}
	if cgroup >= 0 {
		f.clone.cgroup = uint64(cgroup)
	}
	return f
}
