package seccomp

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

//go:generate sh -c "go run gen/main.go > tables.new && mv tables.new tables.go"

// entry is one system call of an architecture; tables are sorted by number.
type entry struct {
	nr   uint16 // 0xf001 and up: ARM's private calls, 0xf0001 and up
	name uint16 // index into the names
}

// x32Bit marks the system calls of x32, which shares x86_64's AUDIT_ARCH
// (Documentation/arch/x86/x86_64/ in the kernel, __X32_SYSCALL_BIT).
const x32Bit = 1 << 30

// arch is what the compiler needs to know about an architecture. All of them
// are little-endian.
type arch struct {
	name  specs.Arch
	audit uint32 // what the kernel calls it in seccomp_data.arch
	bit   uint32 // set in all its numbers
	// narrow: arguments are 32 bits wide, the upper half is not looked at.
	narrow bool
	// mux: socketcall(2) and ipc(2) stand for many calls.
	mux   bool
	table []entry
	// special numbers lie outside the sequence new system calls are added to.
	special [2]uint16
}

func knownArch(name specs.Arch) *arch {
	switch name {
	case specs.ArchX86_64:
		return &arch{name: name, audit: unix.AUDIT_ARCH_X86_64, table: callsX86_64}
	case specs.ArchX32:
		return &arch{name: name, audit: unix.AUDIT_ARCH_X86_64, bit: x32Bit, narrow: true, table: callsX32, special: [2]uint16{512, 547}}
	case specs.ArchX86:
		return &arch{name: name, audit: unix.AUDIT_ARCH_I386, narrow: true, mux: true, table: callsX86}
	case specs.ArchAARCH64:
		return &arch{name: name, audit: unix.AUDIT_ARCH_AARCH64, table: callsAARCH64}
	case specs.ArchARM:
		return &arch{name: name, audit: unix.AUDIT_ARCH_ARM, narrow: true, table: callsARM, special: [2]uint16{0xf001, 0xf006}}
	}
	return nil
}

// foreignArch tells whether name is an architecture of runtime-spec that the
// kernels this daemon runs on cannot execute.
func foreignArch(name specs.Arch) bool {
	switch name {
	case specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32,
		specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32,
		specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE,
		specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64,
		specs.ArchRISCV64, specs.ArchLOONGARCH64,
		specs.ArchM68K, specs.ArchSH, specs.ArchSHEB:
		return true
	}
	return false
}

// number is the system call's number as seccomp_data.nr has it.
func (a *arch) number(e entry) uint32 {
	if e.nr >= 0xf000 {
		return 0xf0000 | uint32(e.nr&0xfff)
	}
	return uint32(e.nr) | a.bit
}

func (a *arch) isSpecial(e entry) bool {
	return a.special[1] != 0 && e.nr >= a.special[0] && e.nr <= a.special[1]
}

// callName is the i-th name of callNames.
func callName(i int) string {
	if i == 0 {
		return callNames[:callEnds[0]]
	}
	return callNames[callEnds[i-1]:callEnds[i]]
}

// findCall looks a name up; -1 if no architecture has such a call.
func findCall(name string) int {
	lo, hi := 0, len(callEnds)
	for lo < hi {
		mid := (lo + hi) / 2
		switch n := callName(mid); {
		case n == name:
			return mid
		case n < name:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return -1
}
