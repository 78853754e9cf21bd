package seccomp

import (
	"slices"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h).
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// assembler builds a program from its end to its start: classic BPF jumps only
// forwards, so every target exists before the jump to it is written.
type assembler struct {
	insns []unix.SockFilter // the last instruction first
	rets  []label           // the latest return of every action
}

// label is an instruction, counted from the end of the program.
type label int

func (a *assembler) emit(code uint16, k uint32, jt, jf int) label {
	a.insns = append(a.insns, unix.SockFilter{Code: code, Jt: uint8(jt), Jf: uint8(jf), K: k})
	return label(len(a.insns) - 1)
}

// skip is how many instructions one written now must skip to reach l.
func (a *assembler) skip(l label) int { return len(a.insns) - 1 - int(l) }

// ret is a return of the action within reach of the next few instructions.
func (a *assembler) ret(action uint32) label {
	i := slices.IndexFunc(a.rets, func(l label) bool { return a.insns[l].K == action })
	if i >= 0 && a.skip(a.rets[i]) < 250 {
		return a.rets[i]
	}
	l := a.emit(unix.BPF_RET|unix.BPF_K, action, 0, 0)
	if i >= 0 {
		a.rets[i] = l
	} else {
		a.rets = append(a.rets, l)
	}
	return l
}

// near is l, or a stand-in for it, within reach of a conditional jump that is
// written after at most room more instructions.
func (a *assembler) near(l label, room int) label {
	if a.skip(l)+room <= 255 {
		return l
	}
	if in := a.insns[l]; in.Code == unix.BPF_RET|unix.BPF_K {
		return a.ret(in.K)
	}
	return a.emit(unix.BPF_JMP|unix.BPF_JA, uint32(a.skip(l)), 0, 0)
}

// branch goes to yes if the accumulator compares with k as op says, else to no.
func (a *assembler) branch(op uint16, k uint32, yes, no label) label {
	if yes == no {
		return yes
	}
	yes = a.near(yes, 1)
	no = a.near(no, 0)
	return a.emit(unix.BPF_JMP|op|unix.BPF_K, k, a.skip(yes), a.skip(no))
}

// load reads the word at off of seccomp_data into the accumulator and goes on
// at next.
func (a *assembler) load(off uint32, next label) label {
	a.fall(next)
	return a.emit(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off, 0, 0)
}

// and masks the accumulator and goes on at next.
func (a *assembler) and(mask uint32, next label) label {
	a.fall(next)
	return a.emit(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, mask, 0, 0)
}

// fall makes sure that what is written now falls through to next.
func (a *assembler) fall(next label) {
	if n := a.skip(next); n > 0 {
		a.emit(unix.BPF_JMP|unix.BPF_JA, uint32(n), 0, 0)
	}
}

// program returns the instructions in the order they run.
func (a *assembler) program() ([]unix.SockFilter, error) {
	if len(a.insns) > unix.BPF_MAXINSNS {
		return nil, sys.Invalidf("seccomp: the filter would have %d instructions, the kernel takes %d: use fewer conditions on arguments", len(a.insns), unix.BPF_MAXINSNS)
	}
	slices.Reverse(a.insns)
	return a.insns, nil
}
