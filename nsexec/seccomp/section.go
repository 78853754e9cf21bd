package seccomp

import (
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

// badArch is the action for system calls of an architecture that the profile
// does not list: libseccomp's default, SCMP_ACT_KILL.
const badArch = unix.SECCOMP_RET_KILL_THREAD

// leaf is how a range of system calls is treated.
type leaf struct {
	rules  []*rule // the first that applies decides
	action uint32  // if none does
	narrow bool    // by the lower half of the arguments
	at     label   // where its code is, once written
}

// generator writes a program. Architectures share leaves.
type generator struct {
	assembler
	*profile
	leaves []leaf
}

// section writes the part of a program for one architecture.
type section struct {
	*generator
	arch *arch
}

// generate writes the program: by architecture, then by number, then by
// arguments. The native architecture comes first.
func (prof *profile) generate() ([]unix.SockFilter, error) {
	g := &generator{profile: prof}
	var audits []uint32
	for _, a := range prof.arches {
		if !slices.Contains(audits, a.audit) {
			audits = append(audits, a.audit)
		}
	}
	slices.Reverse(audits) // written from the end
	entry := make([]label, len(audits))
	for i, audit := range audits {
		entry[i] = g.load(offNr, g.numbers(audit))
	}
	next := g.ret(badArch)
	for i, audit := range audits {
		next = g.branch(unix.BPF_JEQ, audit, entry[i], next)
	}
	g.load(offArch, next)
	return g.program()
}

// numbers writes the search for a number in the architectures that share an
// AUDIT_ARCH: one, or x86_64 and x32.
func (g *generator) numbers(audit uint32) label {
	find := func(bit uint32) *arch {
		for _, a := range g.arches {
			if a.audit == audit && a.bit == bit {
				return a
			}
		}
		return nil
	}
	if audit != unix.AUDIT_ARCH_X86_64 {
		return g.section(find(0))
	}
	var high, low label
	if x32 := find(x32Bit); x32 != nil {
		high = g.section(x32)
	} else { // but -1 is how a tracer cancels a call (seccomp(2))
		high = g.branch(unix.BPF_JEQ, math.MaxUint32, g.ret(g.deflt), g.ret(badArch))
	}
	if x64 := find(0); x64 != nil {
		low = g.section(x64)
	} else {
		low = g.ret(badArch)
	}
	return g.branch(unix.BPF_JGE, x32Bit, high, low)
}

func (g *generator) section(a *arch) label {
	s := section{g, a}
	return tree(&g.assembler, s.ranges(), s.code)
}

// ranges divides all numbers into ranges of equal treatment, by index of leaf.
func (s *section) ranges() []piece[uint32, int] {
	var r []piece[uint32, int]
	put := func(start uint32, leaf int) {
		if len(r) == 0 || r[len(r)-1].to != leaf {
			r = append(r, piece[uint32, int]{start, leaf})
		}
	}
	deflt := s.intern(nil, s.deflt)
	newer := s.intern(nil, s.newer)
	newest := s.newest()
	next := s.arch.bit // the first number not dealt with
	gap := func(end uint32) {
		switch {
		case next >= end:
		case next > newest:
			put(next, newer)
		default:
			put(next, deflt)
			if end-1 > newest {
				put(newest+1, newer)
			}
		}
	}
	for _, e := range s.arch.table {
		c, nr := s.call(e), s.arch.number(e)
		if !c.listed && !s.arch.isSpecial(e) && len(c.rules) == 0 {
			continue
		}
		gap(nr)
		if c.always {
			put(nr, s.intern(nil, c.action))
		} else {
			put(nr, s.intern(c.rules, s.deflt))
		}
		next = nr + 1
	}
	gap(math.MaxUint32)
	return r
}

// call is what the profile says about an entry of the architecture's table.
func (s *section) call(e entry) *call {
	c := &s.calls[e.name]
	if s.arch.mux {
		return s.muxed(callName(int(e.name)), c)
	}
	return c
}

// newest is the highest number the profile lists, not counting special ones;
// without any no call counts as newer.
func (s *section) newest() uint32 {
	for _, e := range slices.Backward(s.arch.table) {
		if s.calls[e.name].listed && !s.arch.isSpecial(e) {
			return s.arch.number(e)
		}
	}
	return math.MaxUint32
}

// intern returns the index of a leaf.
func (s *section) intern(rules []*rule, action uint32) int {
	narrow := s.arch.narrow && len(rules) > 0
	i := slices.IndexFunc(s.leaves, func(l leaf) bool {
		return l.action == action && l.narrow == narrow && slices.Equal(l.rules, rules)
	})
	if i < 0 {
		s.leaves = append(s.leaves, leaf{rules, action, narrow, -1})
		i = len(s.leaves) - 1
	}
	return i
}

// code writes a leaf, once.
func (s *section) code(i int) label {
	l := &s.leaves[i]
	if len(l.rules) == 0 {
		return s.ret(l.action)
	}
	if l.at < 0 {
		l.at = s.decide(l.rules, s.ret(l.action))
	}
	return l.at
}

// decide writes the rules of a call, the last one first. Neighbours that look
// at the same argument are one search.
func (s *section) decide(rules []*rule, otherwise label) label {
	for n := len(rules); n > 0; {
		last := rules[n-1]
		if len(last.conds) > 1 {
			otherwise = s.all(last, otherwise)
			n--
			continue
		}
		p := []piece[uint64, label]{{0, otherwise}}
		on := last.conds[0]
		for ; n > 0 && rules[n-1].only(on.arg, on.mask); n-- {
			p = rules[n-1].conds[0].assign(p, s.max(), s.ret(rules[n-1].action))
		}
		otherwise = s.search(on.arg, on.mask, s.arch.narrow, p)
	}
	return otherwise
}

// only tells whether the rule has one condition, on that argument and mask.
func (r *rule) only(arg uint, mask uint64) bool {
	return len(r.conds) == 1 && r.conds[0].arg == arg && r.conds[0].mask == mask
}

// all writes a rule with several conditions, the last one first.
func (s *section) all(r *rule, otherwise label) label {
	yes := s.ret(r.action)
	for _, c := range slices.Backward(r.conds) {
		p := c.assign([]piece[uint64, label]{{0, otherwise}}, s.max(), yes)
		yes = s.search(c.arg, c.mask, s.arch.narrow, p)
	}
	return yes
}

// max is the largest value an argument can have.
func (s *section) max() uint64 {
	if s.arch.narrow {
		return math.MaxUint32
	}
	return math.MaxUint64
}
