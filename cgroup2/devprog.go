package cgroup2

import "encoding/binary"

// The filter is a BPF_PROG_TYPE_CGROUP_DEVICE program. It is called with
//
//	struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }
//
// whose access_type is access<<16 | kind, and returns 1 to allow and 0 to deny.
// Several kinds of access can be asked for at once (open(2) with O_RDWR).
//
// It goes through the rules from the last to the first and keeps in r3 what
// has not been decided yet. A rule that matches the device decides its kinds of
// access: one that denies ends in 0 if any of them is still open, one that
// allows clears them and ends in 1 if nothing is left. After the first rule
// the answer is 0.
//
// (Testing whether the request is a subset of the rule's access, as simpler
// filters do, lets O_RDWR slip past a rule that denies only writing.)

// insn is struct bpf_insn of linux/bpf.h.
type insn struct {
	op       uint8
	dst, src uint8
	off      int16
	imm      int32
}

// Registers: r1 is the context at entry and scratch later, r0 the result.
const (
	regResult  = 0
	regScratch = 1
	regKind    = 2
	regAccess  = 3
	regMajor   = 4
	regMinor   = 5
)

// Opcodes: class | size or operation | source, from linux/bpf.h.
const (
	opLoadW   = 0x61 // dst = *(u32 *)(src + off)
	opMovImm  = 0xb4 // w(dst) = imm
	opMovReg  = 0xbc // w(dst) = w(src)
	opAndImm  = 0x54 // w(dst) &= imm
	opRshImm  = 0x74 // w(dst) >>= imm
	opJneImm  = 0x56 // if w(dst) != imm goto +off (BPF_JMP32, Linux 5.1)
	opJeqImm  = 0x16 // if w(dst) == imm goto +off
	opExit    = 0x95
	insnBytes = 8
)

// deviceProgram assembles the filter for rules.
func deviceProgram(rules []devRule) []insn {
	p := []insn{
		{op: opLoadW, dst: regKind, src: regScratch, off: 0},
		{op: opLoadW, dst: regMajor, src: regScratch, off: 4},
		{op: opLoadW, dst: regMinor, src: regScratch, off: 8},
		{op: opMovReg, dst: regAccess, src: regKind},
		{op: opRshImm, dst: regAccess, imm: 16},
		{op: opAndImm, dst: regKind, imm: 0xffff},
	}
	for i := len(rules) - 1; i >= 0; i-- {
		p = append(p, ruleInsns(rules[i])...)
	}
	return append(p, insn{op: opMovImm, dst: regResult, imm: 0}, insn{op: opExit})
}

// ruleInsns assembles one rule. Every test that fails jumps to its end.
func ruleInsns(r devRule) []insn {
	var p []insn
	if r.kind != devAny {
		p = append(p, insn{op: opJneImm, dst: regKind, imm: int32(r.kind)})
	}
	if r.major != anyNumber {
		p = append(p, insn{op: opJneImm, dst: regMajor, imm: int32(r.major)})
	}
	if r.minor != anyNumber {
		p = append(p, insn{op: opJneImm, dst: regMinor, imm: int32(r.minor)})
	}
	if r.allow {
		p = append(p,
			insn{op: opAndImm, dst: regAccess, imm: int32(accAll &^ r.access)},
			insn{op: opJneImm, dst: regAccess, imm: 0},
			insn{op: opMovImm, dst: regResult, imm: 1})
	} else {
		p = append(p,
			insn{op: opMovReg, dst: regScratch, src: regAccess},
			insn{op: opAndImm, dst: regScratch, imm: int32(r.access)},
			insn{op: opJeqImm, dst: regScratch, imm: 0},
			insn{op: opMovImm, dst: regResult, imm: 0})
	}
	p = append(p, insn{op: opExit})
	for i := range p {
		if p[i].op == opJneImm || p[i].op == opJeqImm {
			p[i].off = int16(len(p) - i - 1)
		}
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
