package nsexec

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// String prints the program as strace would print the child's syscalls, one per
// line, each step introduced by its text and each block indented. Registers
// read $name.
func (p *Program) String() string {
	var b strings.Builder
	step := uint16(0)
	var ends []int // instructions at which an indented block ends
	for i := 0; i < p.n; i++ {
		for len(ends) > 0 && i >= ends[len(ends)-1] {
			ends = ends[:len(ends)-1]
		}
		in := p.mem.insn(i)
		if _, gate := p.gates[GateID(i)]; p.stepOf[i] != step && in.nr != pseudo|opFail && !gate {
			step = p.stepOf[i]
			fmt.Fprintf(&b, "# %s\n", p.steps[step])
		}
		skip, text := int(max(in.okSkip, in.errSkip)), p.decode(in)
		switch name, gate := p.gates[GateID(i)]; {
		case gate:
			i += gateLen - 1
			text = "wait at gate " + name
		case in.flags&flagCatch != 0 && isJump(in):
			text = "catch:"
		case in.flags&flagCatch != 0:
			skip = 0
		case isJump(in) && len(ends) > 0: // the end of a block that has an alternative
			ends = ends[:len(ends)-1]
			text = "else:"
		case in.nr == pseudo|opSkipNZ && i+1 < p.n && isJump(p.mem.insn(i+1)): // IfNonZero
			i++
			skip = int(p.mem.insn(i).okSkip)
			text = fmt.Sprintf("if %s != 0:", p.reg(Reg(in.args[0])))
		case in.nr == pseudo|opFail:
			text = fmt.Sprintf("fail with %s: %s", unix.ErrnoName(unix.Errno(in.args[0])), p.steps[p.stepOf[i]])
		}
		fmt.Fprintf(&b, "%s%s\n", strings.Repeat("  ", len(ends)), text)
		if skip > 0 {
			ends = append(ends, i+1+skip)
		}
	}
	return b.String()
}

// isJump: an unconditional skip.
func isJump(in *insn) bool { return in.nr == pseudo|opSkipNZ && in.flags&1 == 0 }

func (p *Program) decode(in *insn) string {
	if in.nr&pseudo != 0 {
		return p.decodePseudo(in)
	}
	sig := signature(in.nr)
	var b strings.Builder
	fmt.Fprintf(&b, "%s(", sig.name)
	for i, k := range sig.args {
		if i > 0 {
			b.WriteString(", ")
		}
		if in.flags&(1<<i) != 0 {
			b.WriteString(p.reg(Reg(in.args[i])))
		} else {
			b.WriteString(p.value(byte(k), in.args[i]))
		}
	}
	b.WriteByte(')')
	if in.flags&flagStore != 0 {
		fmt.Fprintf(&b, " = %s", p.reg(Reg(in.store)))
	}
	if in.flags&flagIgnoreAll != 0 {
		b.WriteString(" or any error")
	}
	var or []string
	for _, e := range in.errnos {
		if e != 0 {
			or = append(or, unix.ErrnoName(unix.Errno(e)))
		}
	}
	if len(or) > 0 {
		fmt.Fprintf(&b, " or %s", strings.Join(or, "|"))
	}
	switch {
	case in.flags&flagCatch != 0:
		b.WriteString(", which goes on at catch")
	case in.okSkip > 0:
		b.WriteString("; if that failed:")
	case in.errSkip > 0:
		b.WriteString("; if that worked:")
	}
	return b.String()
}

func (p *Program) decodePseudo(in *insn) string {
	arg := func(i int) string {
		if in.flags&(1<<i) != 0 {
			return p.reg(Reg(in.args[i]))
		}
		return p.value('p', in.args[i])
	}
	switch in.nr &^ pseudo {
	case opFail:
		return "fail"
	case opSkipNZ:
		return fmt.Sprintf("if %s == 0:", arg(0))
	case opSkipNotEq:
		return fmt.Sprintf("if *%s == *%s:", arg(0), arg(1))
	case opSkipEq:
		return fmt.Sprintf("if *%s != *%s:", arg(0), arg(1))
	case opLoad:
		return fmt.Sprintf("%s = *%s", p.reg(Reg(in.store)), arg(0))
	default:
		v := arg(1)
		if in.flags&2 == 0 && p.mem.at(in.args[1]) == nil {
			v = fmt.Sprint(int64(in.args[1]))
		}
		return fmt.Sprintf("*%s = %s", arg(0), v)
	}
}

func (p *Program) reg(r Reg) string { return "$" + p.names[r%numRegs] }

// value prints one argument according to its kind, see signatures.
func (p *Program) value(kind byte, v uint64) string {
	mem := p.mem.at(v)
	switch kind {
	case 'd':
		return fmt.Sprint(int64(v))
	case 'f':
		if int32(v) == unix.AT_FDCWD {
			return "AT_FDCWD"
		}
		return fmt.Sprint(int32(v))
	case 'o':
		return fmt.Sprintf("%#o", v)
	case 'g':
		return unix.SignalName(unix.Signal(v))
	}
	if t, ok := flagTables[kind]; ok {
		return decodeFlags(v, t)
	}
	if name := nameOf(v, valueTables[kind]); name != "" {
		return name
	}
	switch {
	case v == 0:
		return "NULL"
	case mem == nil:
		return fmt.Sprintf("%#x", v)
	}
	switch kind {
	case 's':
		return quote(mem)
	case 'v':
		return p.vector(mem)
	case 'h':
		return fmt.Sprintf("{flags=%s, mode=%#o, resolve=%s}", decodeFlags(word(mem), openFlags), word(mem[8:]), decodeFlags(word(mem[16:]), resolveFlags))
	case 'a':
		return fmt.Sprintf("{attr_set=%s, attr_clr=%s, propagation=%s, userns_fd=%d}",
			decodeFlags(word(mem), mountAttrs), decodeFlags(word(mem[8:]), mountAttrs), decodeFlags(word(mem[16:]), mountFlags), word(mem[24:]))
	case 'c':
		return fmt.Sprintf("{flags=%s, pidfd=%s, parent_tid=%s}", decodeFlags(word(mem), cloneFlags), p.value('p', word(mem[8:])), p.value('p', word(mem[24:])))
	case 'q':
		return fmt.Sprintf("{policy=%s, flags=%s, nice=%d, priority=%d, runtime=%d, deadline=%d, period=%d}", decodeValue(word(mem)>>32, schedPolicies),
			decodeFlags(word(mem[8:]), schedFlags), int32(word(mem[16:])), word(mem[16:])>>32, word(mem[24:]), word(mem[32:]), word(mem[40:]))
	case 'l':
		return fmt.Sprintf("{soft=%d, hard=%d}", word(mem), word(mem[8:]))
	case 'w':
		return fmt.Sprintf("[%#x %#x]", word(mem), word(mem[8:]))
	}
	if v >= p.mem.addr(0) && v < p.mem.addr(0)+8*numRegs {
		return "registers" + offset(v-p.mem.addr(0))
	}
	return "memory"
}

func offset(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("[%d]", n/8)
}

func (p *Program) vector(mem []byte) string {
	var s []string
	for ; len(mem) >= 8 && word(mem) != 0; mem = mem[8:] {
		s = append(s, quote(p.mem.at(word(mem))))
	}
	return "[" + strings.Join(s, ", ") + "]"
}

func quote(mem []byte) string {
	for i, c := range mem {
		if c == 0 {
			mem = mem[:i]
			break
		}
	}
	return fmt.Sprintf("%q", mem)
}

// nameOf returns the name of a number, "" if it has none.
func nameOf(v uint64, table []flagName) string {
	for _, f := range table {
		if f.bits == v {
			return f.name
		}
	}
	return ""
}

// decodeValue prints a number by its name, if it has one.
func decodeValue(v uint64, table []flagName) string {
	if name := nameOf(v, table); name != "" {
		return name
	}
	return fmt.Sprintf("%#x", v)
}

// lookup finds a number by its name.
func lookup(table []flagName, name string) (uint64, bool) {
	for _, f := range table {
		if f.name == name {
			return f.bits, true
		}
	}
	return 0, false
}

func decodeFlags(v uint64, table []flagName) string {
	var s []string
	for _, f := range table {
		if f.bits != 0 && v&f.bits == f.bits {
			s = append(s, f.name)
			v &^= f.bits
		}
	}
	if v != 0 || len(s) == 0 {
		s = append(s, fmt.Sprintf("%#x", v))
	}
	return strings.Join(s, "|")
}

// CloneFlags prints flags of clone3(2).
func CloneFlags(flags uint64) string { return decodeFlags(flags, cloneFlags) }
