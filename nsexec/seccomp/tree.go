package seccomp

import (
	"math"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// piece says that from start up to the next piece's start a number means "to".
// A list of pieces is in order and covers every number from its first on.
type piece[N uint32 | uint64, T comparable] struct {
	start N
	to    T
}

// tree writes a binary search for the accumulator in p; at gives the label of a
// piece's meaning and may write code for it.
func tree[T comparable](a *assembler, p []piece[uint32, T], at func(T) label) label {
	if len(p) == 1 {
		return at(p[0].to)
	}
	if i := exception(p); len(p) <= 7 && i > 0 { // a search is no shorter
		rest := slices.Concat(p[:i], p[i+2:])
		no := tree(a, rest, at)
		return a.branch(unix.BPF_JEQ, p[i].start, at(p[i].to), no)
	}
	mid := (len(p) + 1) / 2
	high := tree(a, p[mid:], at)
	return a.branch(unix.BPF_JGE, p[mid].start, high, tree(a, p[:mid], at))
}

// exception finds a single number among others of one meaning; 0 for none.
func exception[T comparable](p []piece[uint32, T]) int {
	for i := 1; i+1 < len(p); i++ {
		if p[i-1].to == p[i+1].to && p[i].start+1 == p[i+1].start {
			return i
		}
	}
	return 0
}

// assign changes the meaning of lo to hi, both included.
func assign(p []piece[uint64, label], lo, hi uint64, to label) []piece[uint64, label] {
	at := func(n uint64) int { // index of the piece that holds n
		i, found := slices.BinarySearchFunc(p, n, func(e piece[uint64, label], n uint64) int {
			switch {
			case e.start < n:
				return -1
			case e.start > n:
				return 1
			}
			return 0
		})
		if !found {
			i--
		}
		return i
	}
	first, last := at(lo), at(hi)
	end := last + 1
	repl := make([]piece[uint64, label], 0, 3)
	if p[first].start < lo {
		repl = append(repl, p[first])
	}
	repl = append(repl, piece[uint64, label]{lo, to})
	if hi != math.MaxUint64 && (end == len(p) || p[end].start > hi+1) {
		repl = append(repl, piece[uint64, label]{hi + 1, p[last].to})
	}
	return slices.Replace(p, first, end, repl...)
}

// merge joins neighbours that mean the same.
func merge[N uint32 | uint64, T comparable](p []piece[N, T]) []piece[N, T] {
	return slices.CompactFunc(p, func(a, b piece[N, T]) bool { return a.to == b.to })
}

// assign gives the values that satisfy the condition, among those up to max, a
// meaning.
func (c cond) assign(p []piece[uint64, label], max uint64, to label) []piece[uint64, label] {
	v := c.value & max
	low, high := v, v // a condition is a range, or, for NE, two
	switch c.op {
	case specs.OpNotEqual:
		if v < max {
			p = assign(p, v+1, max, to)
		}
		fallthrough
	case specs.OpLessThan:
		if v == 0 {
			return p
		}
		low, high = 0, v-1
	case specs.OpLessEqual:
		low = 0
	case specs.OpGreaterThan:
		if v == max {
			return p
		}
		low, high = v+1, max
	case specs.OpGreaterEqual:
		high = max
	}
	return assign(p, low, high, to)
}

// search writes the code that takes an argument, under a mask, to its piece.
// Only the lower half of narrow arguments is looked at.
func (a *assembler) search(arg uint, mask uint64, narrow bool, p []piece[uint64, label]) label {
	off := uint32(offArgs + 8*arg)
	if narrow {
		mask &= math.MaxUint32
	}
	var high []piece[uint32, label] // by upper half
	put := func(start uint32, to label) {
		if n := len(high); n > 0 && high[n-1].start == start {
			high[n-1].to = to
			return
		}
		high = append(high, piece[uint32, label]{start, to})
	}
	for p = merge(p); len(p) > 0; {
		h := uint32(p[0].start >> 32)
		var low []piece[uint32, label]
		if uint32(p[0].start) != 0 { // h begins with what the pieces before end in
			low = append(low, piece[uint32, label]{0, high[len(high)-1].to})
		}
		for len(p) > 0 && uint32(p[0].start>>32) == h {
			low = append(low, piece[uint32, label]{uint32(p[0].start), p[0].to})
			p = p[1:]
		}
		put(h, a.word(off, uint32(mask), low))
		if h != math.MaxUint32 {
			put(h+1, low[len(low)-1].to)
		}
	}
	return a.word(off+4, uint32(mask>>32), merge(high))
}

// word writes the code that takes 32 bits of seccomp_data, under a mask, to
// their piece.
func (a *assembler) word(off, mask uint32, p []piece[uint32, label]) label {
	for p[len(p)-1].start > mask { // out of reach
		p = p[:len(p)-1]
	}
	here := func(l label) label { return l }
	switch {
	case len(p) == 1:
		return p[0].to
	case mask == math.MaxUint32:
		return a.load(off, tree(a, p, here))
	case len(p) == 2 && p[1].start == 1: // zero or not, no need to know more
		return a.load(off, a.branch(unix.BPF_JSET, mask, p[1].to, p[0].to))
	}
	return a.load(off, a.and(mask, tree(a, p, here)))
}
