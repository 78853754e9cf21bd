package cgroup2

import "encoding/binary"

// The filter is a BPF_PROG_TYPE_CGROUP_DEVICE program. It is called with
//
//	struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }
//
// whose access_type is access<<16 | kind, and returns 1 to allow and 0 to deny.
// Several kinds of access can be asked for at once (open(2) with O_RDWR), and
// each is decided by the last rule that matches the device and covers it.
//
// So the program goes through the rules from the last to the first. One set of
// bits has the kinds of access that are still open, another those that have
// been denied; each rule takes from the first what it decides and, if it
// denies, adds that to the second. What is open at the end is denied too.
//
// (Testing whether the request as a whole is covered by one rule, as simpler
// filters do, lets O_RDWR slip past a rule that denies only writing.)
//
// There is no jump in it: whether a rule matches becomes 0 or 1 by arithmetic.
// The kernel's verifier follows every path through a program, and with a branch
// for each test, 256 rules of a hostile configuration kept it busy for two and
// a half seconds. Straight-line code takes it no time, whatever the rules. (The
// usual mask, an arithmetic shift by 63 and an AND, will not do: new kernels
// take the pair for a branch and follow both ways.)

// insn is struct bpf_insn of linux/bpf.h.
type insn struct {
	op       uint8
	dst, src uint8
	off      int16
	imm      int32
}

// Registers. r1 is the context at entry.
const (
	regDenied = 0 // also the result
	regMatch  = 1
	regKind   = 2
	regOpen   = 3
	regMajor  = 4
	regMinor  = 5
	regTemp   = 6
)

// Opcodes: class | operation | source, from linux/bpf.h. All are 64 bits wide
// but for two of 32, which clear the upper half.
const (
	opLoad32  = 0x61 // dst = *(u32 *)(src + off)
	opMovImm  = 0xb7
	opMov     = 0xbf
	opAndImm  = 0x57
	opAnd     = 0x5f
	opOr      = 0x4f
	opXor32   = 0xa4 // with imm, which a wide one would extend by its sign
	opXor     = 0xaf
	opSubImm  = 0x17
	opMulImm  = 0x27
	opRshImm  = 0x77 // filling with zeros
	opExit    = 0x95
	insnBytes = 8
)

// deviceProgram assembles the filter for rules.
func deviceProgram(rules []devRule) []insn {
	p := []insn{
		{op: opLoad32, dst: regKind, src: regMatch, off: 0},
		{op: opLoad32, dst: regMajor, src: regMatch, off: 4},
		{op: opLoad32, dst: regMinor, src: regMatch, off: 8},
		{op: opMov, dst: regOpen, src: regKind},
		{op: opRshImm, dst: regOpen, imm: 16},
		{op: opAndImm, dst: regKind, imm: 0xffff},
		{op: opMovImm, dst: regDenied, imm: 0},
	}
	for i := len(rules) - 1; i >= 0; i-- {
		p = appendRule(p, rules[i])
	}
	return append(p,
		insn{op: opOr, dst: regDenied, src: regOpen},
		insn{op: opSubImm, dst: regDenied, imm: 1},  // below zero only if nothing is denied
		insn{op: opRshImm, dst: regDenied, imm: 63}, // 1 if so
		insn{op: opExit})
}

// appendRule assembles one rule.
func appendRule(p []insn, r devRule) []insn {
	// Sum up the differences between device and rule; none is a match.
	p = append(p, insn{op: opMovImm, dst: regMatch, imm: 0})
	for _, test := range []struct {
		skip  bool
		reg   uint8
		value uint32
	}{
		{r.kind == devAny, regKind, uint32(r.kind)},
		{r.major == anyNumber, regMajor, r.major},
		{r.minor == anyNumber, regMinor, r.minor},
	} {
		if !test.skip {
			p = append(p,
				insn{op: opMov, dst: regTemp, src: test.reg},
				insn{op: opXor32, dst: regTemp, imm: int32(test.value)},
				insn{op: opOr, dst: regMatch, src: regTemp})
		}
	}
	p = append(p,
		insn{op: opSubImm, dst: regMatch, imm: 1},  // below zero only for a match
		insn{op: opRshImm, dst: regMatch, imm: 63}, // 1 if so
		insn{op: opMulImm, dst: regMatch, imm: int32(r.access)},
		insn{op: opAnd, dst: regMatch, src: regOpen}, // what this rule decides
		insn{op: opXor, dst: regOpen, src: regMatch})
	if !r.allow {
		p = append(p, insn{op: opOr, dst: regDenied, src: regMatch})
	}
	return p
}

// encode lays a program out as the kernel of a little-endian machine takes it.
func encode(prog []insn) []byte {
	b := make([]byte, 0, len(prog)*insnBytes)
	for _, in := range prog {
		b = append(b, in.op, in.dst|in.src<<4)
		b = binary.LittleEndian.AppendUint16(b, uint16(in.off))
		b = binary.LittleEndian.AppendUint32(b, uint32(in.imm))
	}
	return b
}
