package seccomp

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	ip       uint64
	args     [6]uint64
}

// run interprets a filter the way the kernel does and returns its verdict and
// the number of instructions it took. The filter must have passed verify.
func run(insns []unix.SockFilter, d *data) (verdict uint32, steps int) {
	var acc uint32
	var mem [64]byte
	binary.LittleEndian.PutUint32(mem[0:], d.nr)
	binary.LittleEndian.PutUint32(mem[4:], d.arch)
	binary.LittleEndian.PutUint64(mem[8:], d.ip)
	for i, a := range d.args {
		binary.LittleEndian.PutUint64(mem[16+8*i:], a)
	}
	for pc := 0; ; pc++ {
		in := insns[pc]
		steps++
		cond := false
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = binary.LittleEndian.Uint32(mem[in.K:])
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= in.K
			continue
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(in.K)
			continue
		case unix.BPF_RET | unix.BPF_K:
			return in.K, steps
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			cond = acc == in.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			cond = acc > in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			cond = acc >= in.K
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			cond = acc&in.K != 0
		}
		if cond {
			pc += int(in.Jt)
		} else {
			pc += int(in.Jf)
		}
	}
}

// verify applies the rules of bpf_check_classic (net/core/filter.c) and
// seccomp_check_filter (kernel/seccomp.c).
func verify(insns []unix.SockFilter) error {
	_, err := reachable(insns)
	return err
}

// reachable verifies a filter and counts the instructions that can be reached.
func reachable(insns []unix.SockFilter) (count int, err error) {
	if len(insns) == 0 || len(insns) > unix.BPF_MAXINSNS {
		return 0, fmt.Errorf("%d instructions", len(insns))
	}
	reached := make([]bool, len(insns))
	reached[0] = true
	for pc, in := range insns {
		var next []int
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if in.K >= 64 || in.K%4 != 0 {
				return 0, fmt.Errorf("instruction %d loads from %d", pc, in.K)
			}
			next = []int{pc + 1}
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			next = []int{pc + 1}
		case unix.BPF_JMP | unix.BPF_JA:
			if in.K >= uint32(len(insns)-pc-1) {
				return 0, fmt.Errorf("instruction %d jumps out", pc)
			}
			next = []int{pc + 1 + int(in.K)}
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K,
			unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			next = []int{pc + 1 + int(in.Jt), pc + 1 + int(in.Jf)}
		case unix.BPF_RET | unix.BPF_K:
		default:
			return 0, fmt.Errorf("instruction %d has code %#x", pc, in.Code)
		}
		for _, n := range next {
			if n >= len(insns) {
				return 0, fmt.Errorf("instruction %d leads out", pc)
			}
			reached[n] = reached[n] || reached[pc]
		}
		if reached[pc] {
			count++
		}
	}
	if last := insns[len(insns)-1]; last.Code != unix.BPF_RET|unix.BPF_K {
		return 0, fmt.Errorf("ends in code %#x", last.Code)
	}
	return count, nil
}
