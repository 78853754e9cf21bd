package nsexec

import (
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Reg is a register of the child: a 64-bit cell that holds an fd or any other
// syscall result and can be an argument of later instructions.
type Reg uint8

// Registers with a fixed role. The rest is handed out by NewReg and Input.
const (
	regStatus Reg = 0 // the child's end of the status socket
	regGate   Reg = 29
	regPC     Reg = 30 // which instruction a message is about
	regErrno  Reg = 31 // 0: arrived at a gate; else why the instruction failed
	numRegs       = 32
)

// Arg is one argument of an instruction: a number, an address inside the
// program's memory, or a register read when the instruction runs.
type Arg struct {
	v   uint64
	reg bool
}

// Int is a numeric argument. Negative values such as unix.AT_FDCWD are fine.
func Int[T ~int | ~int32 | ~int64 | ~uint | ~uint32 | ~uint64 | ~uintptr](v T) Arg {
	return Arg{v: uint64(v)}
}

// Nil is the null pointer.
var Nil = Arg{}

// Arg makes the register an argument.
func (r Reg) Arg() Arg { return Arg{v: uint64(r), reg: true} }

// Plus moves an address n bytes further.
func (a Arg) Plus(n int) Arg { return Arg{v: a.v + uint64(n)} }

// insn is the form the interpreter reads. Its layout is known to launch_*.s.
type insn struct {
	nr      uint32 // syscall number, or pseudo|op
	flags   uint32
	args    [6]uint64
	store   uint8    // register the result goes to, with flagStore
	errnos  [3]uint8 // errnos that are not a failure, 0 = unused
	okSkip  uint16   // instructions to skip after success
	errSkip uint16   // instructions to skip after an ignored error
}

const (
	insnSize = 64

	flagStore     = 1 << 6 // bits 0-5: argument i is a register
	flagIgnoreAll = 1 << 7
	flagCatch     = 1 << 8 // errSkip leads to a Catch; only String cares

	pseudo      = 1 << 31
	opFail      = 0 // fail with errno a0
	opSkipNZ    = 1 // if a0 != 0 skip okSkip
	opSkipNotEq = 2 // if *(u64*)a0 != *(u64*)a1 skip okSkip
	opSkipEq    = 3 // if *(u64*)a0 == *(u64*)a1 skip okSkip
	opPoke      = 4 // *(u64*)a0 = a1
	opLoad      = 5 // store = *(u64*)a0
)

// Program is a launch as data. It is built by one goroutine, may be launched
// once, and owns a mapping that Close releases. Building never fails half-way:
// the first error sticks, later calls do nothing, and Err reports it.
type Program struct {
	mem    arena
	n      int      // instructions so far
	steps  []string // texts for errors, see Step
	step   uint16   // the one in force
	stepOf []uint16 // instruction -> index into steps
	gates  map[GateID]string
	inputs []Reg
	names  [numRegs]string
	next   Reg
	// scratch is the register for short-lived fds, see tmp.
	scratch Reg
	home    *Launcher // takes the memory back, may be nil
	homeVar Arg       // the value of HOME, if we gave it
	files   files
	err     error
}

func newProgram(mem arena) *Program {
	p := &Program{mem: mem, next: 1, steps: []string{"launch"}, stepOf: make([]uint16, 0, 256), gates: map[GateID]string{}}
	p.names[regStatus] = "status"
	p.names[regGate] = "go"
	return p
}

// Close releases the program's memory. The program and everything made from it
// must not be used afterwards. It is safe to call twice.
func (p *Program) Close() error { return p.mem.close() }

// Err returns the first error met while building.
func (p *Program) Err() error { return p.err }

// Len is the number of instructions.
func (p *Program) Len() int { return p.n }

// Fail makes err the program's error unless there is one already. Compilers
// use it for input they refuse.
func (p *Program) Fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// Step names what the following instructions do, for error texts and for
// String: "mount proc on /proc". It stays in force until the next Step.
func (p *Program) Step(format string, args ...any) {
	if len(p.steps) == math.MaxUint16 {
		p.Fail(sys.Invalidf("launch program: more than %d steps", len(p.steps)))
		return
	}
	if len(args) > 0 {
		format = fmt.Sprintf(format, args...)
	}
	p.steps = append(p.steps, format)
	p.step = uint16(len(p.steps) - 1)
}

// NewReg hands out a free register. The name is what String prints.
func (p *Program) NewReg(name string) Reg {
	if p.next >= regGate {
		p.Fail(fmt.Errorf("launch program: out of registers for %s", name))
		return regGate
	}
	r := p.next
	p.next++
	p.names[r] = name
	return r
}

// SetReg gives a register its value at the start of the program; 0 otherwise.
func (p *Program) SetReg(r Reg, v uint64) { p.mem.setReg(r, v) }

// Input declares a register that holds one of the parent's file descriptors.
// The fd stays open in the child until execve; all others are closed first.
// Bind says which fd it is.
func (p *Program) Input(name string) Reg {
	r := p.NewReg(name)
	p.inputs = append(p.inputs, r)
	p.SetReg(r, math.MaxUint64)
	return r
}

// Bind sets the fd of an input. The fd stays the caller's, who keeps it open
// until Start has returned.
func (p *Program) Bind(r Reg, fd int) { p.SetReg(r, uint64(fd)) }

// Insn refers to an instruction just added, to say more about it.
type Insn struct {
	p *Program
	i int
}

// Call appends the syscall nr.
func (p *Program) Call(nr uintptr, args ...Arg) Insn { return p.add(uint32(nr), args) }

func (p *Program) add(nr uint32, args []Arg) Insn {
	if p.err != nil {
		return Insn{p, -1}
	}
	if p.n >= maxInsns {
		p.Fail(sys.Invalidf("launch program: more than %d instructions", maxInsns))
		return Insn{p, -1}
	}
	in := p.mem.insn(p.n)
	*in = insn{nr: nr}
	for i, a := range args {
		in.args[i] = a.v
		if a.reg {
			in.flags |= 1 << i
		}
	}
	p.stepOf = append(p.stepOf, p.step)
	p.n++
	return Insn{p, p.n - 1}
}

func (in Insn) get() *insn {
	if in.i < 0 {
		return &insn{} // the program has failed already
	}
	return in.p.mem.insn(in.i)
}

// Store keeps the result in r.
func (in Insn) Store(r Reg) Insn {
	x := in.get()
	x.flags |= flagStore
	x.store = uint8(r)
	return in
}

// Ignore lists up to three errnos after which the child goes on.
func (in Insn) Ignore(errnos ...unix.Errno) Insn {
	x := in.get()
	for i, e := range errnos {
		x.errnos[i] = uint8(e)
	}
	return in
}

// IgnoreAll lets the child go on after any error.
func (in Insn) IgnoreAll() Insn {
	in.get().flags |= flagIgnoreAll
	return in
}

// IfError runs the block only after the instruction failed with an ignored errno.
func (p *Program) IfError(in Insn, block func()) { in.get().okSkip = p.block(block) }

// IfOK runs the block only after the instruction succeeded.
func (p *Program) IfOK(in Insn, block func()) { in.get().errSkip = p.block(block) }

// IfNonZero runs the block only when the register is not 0.
func (p *Program) IfNonZero(r Reg, block func()) {
	p.add(pseudo|opSkipNZ, []Arg{r.Arg()}).get().okSkip = 1 // over the jump
	jump := p.jump()
	jump.get().okSkip = p.block(block)
}

func (p *Program) block(emit func()) uint16 {
	start := p.n
	emit()
	if p.n-start > math.MaxUint16 {
		p.Fail(sys.Invalidf("launch program: block of %d instructions", p.n-start))
		return 0
	}
	return uint16(p.n - start)
}

// IfElse runs one block or the other, as the instruction succeeded or failed
// with an ignored errno.
func (p *Program) IfElse(in Insn, ok, failed func()) {
	var jump Insn
	in.get().errSkip = p.block(func() {
		ok()
		jump = p.jump()
	})
	jump.get().okSkip = p.block(failed)
}

// Catch runs the block only after one of the instructions, all of them before
// it, failed with an ignored errno; what stands between is skipped then.
func (p *Program) Catch(block func(), ins ...Insn) {
	jump := p.jump()
	for _, in := range ins {
		x := in.get()
		x.flags |= flagCatch
		if jump.i-in.i > math.MaxUint16 {
			p.Fail(sys.Invalidf("launch program: block of %d instructions", jump.i-in.i))
		}
		x.errSkip = uint16(jump.i - in.i)
	}
	jump.get().flags |= flagCatch
	jump.get().okSkip = p.block(block)
}

// FailIfEqual ends the launch with errno and the text when the 64-bit words at
// a and b are equal, for all pairs given. It is how the child checks what it
// sees (is this mount point the root? is the cwd inside?) without a round trip.
func (p *Program) FailIfEqual(errno unix.Errno, text string, pairs ...[2]Arg) {
	for i, ab := range pairs {
		skip := p.add(pseudo|opSkipNotEq, ab[:])
		skip.get().okSkip = uint16(len(pairs) - i) // to behind opFail
	}
	p.FailWith(errno, text)
}

// FailUnlessEqual ends the launch with errno and the text unless the 64-bit
// word at a equals that at one of the other addresses.
func (p *Program) FailUnlessEqual(errno unix.Errno, text string, a Arg, others ...Arg) {
	for i, b := range others {
		p.add(pseudo|opSkipEq, []Arg{a, b}).get().okSkip = uint16(len(others) - i) // to behind opFail
	}
	p.FailWith(errno, text)
}

// FailWith ends the launch here with an error that reads as text.
func (p *Program) FailWith(errno unix.Errno, text string) {
	step := p.step
	p.Step("%s", text)
	p.add(pseudo|opFail, []Arg{Int(int(errno))})
	p.step = step
}

// jump skips okSkip instructions, always.
func (p *Program) jump() Insn { return p.add(pseudo|opSkipNZ, []Arg{Int(1)}) }

// Poke stores the value (a register, as a rule) at an address, for structs that
// carry an fd.
func (p *Program) Poke(addr, value Arg) { p.add(pseudo|opPoke, []Arg{addr, value}) }

// Load makes the register the 64-bit word at an address. With Poke it keeps
// more values than there are registers: Poke(cell, r.Arg()), later Load(r, cell),
// where cell is Words(0).
func (p *Program) Load(r Reg, addr Arg) { p.add(pseudo|opLoad, []Arg{addr}).Store(r) }

// GateID tells the gates of a program apart.
type GateID int

// gateLen is how many instructions a gate takes.
const gateLen = 6

// Gate stops the child until the parent lets it go on (Child.AwaitGate,
// Child.Open). All registers travel to the parent, so it can fetch fds of the
// child by number. If the parent is gone, the child ends. What was the step
// before is the step again behind the gate.
func (p *Program) Gate(name string) GateID {
	step, id := p.step, GateID(p.n)
	p.gates[id] = name
	p.Step("wait at gate %s", name)
	regs := Arg{v: p.mem.addr(0)}
	p.Poke(regs.Plus(8*int(regPC)), Int(p.n))
	p.Poke(regs.Plus(8*int(regErrno)), Int(0))
	p.Call(unix.SYS_WRITE, regStatus.Arg(), regs, Int(8*numRegs))
	p.Call(unix.SYS_READ, regStatus.Arg(), p.Buffer(8), Int(8)).Store(regGate)
	p.add(pseudo|opSkipNZ, []Arg{regGate.Arg()}).get().okSkip = 1
	p.Call(unix.SYS_EXIT_GROUP, Int(1))
	p.step = step
	return id
}

// Write puts bytes into the program's memory for a child that waits at a gate.
// They must fit into what was reserved at that address (Buffer).
func (p *Program) Write(at Arg, b []byte) error {
	mem := p.mem.at(at.v)
	if at.reg || at.v < p.mem.addr(dataOff) || len(mem) < len(b) {
		return fmt.Errorf("launch program: write of %d bytes outside its memory", len(b))
	}
	copy(mem, b)
	return nil
}

// Str puts a NUL-terminated copy of s into the program's memory. A NUL
// inside s is refused: the kernel would silently see less than was checked.
func (p *Program) Str(s string) Arg {
	if strings.IndexByte(s, 0) >= 0 {
		// Not which: it may be a secret of the environment.
		p.Fail(sys.Invalidf("%s: a string of %d bytes contains a NUL byte", p.steps[p.step], len(s)))
		return Nil
	}
	a, b := p.alloc(len(s) + 1)
	if b != nil {
		copy(b, s)
		b[len(s)] = 0
	}
	return a
}

// Bytes puts a copy of b into the program's memory.
func (p *Program) Bytes(b []byte) Arg {
	a, m := p.alloc(len(b))
	copy(m, b)
	return a
}

// Buffer reserves n zero bytes. They are not touched: what the child does not
// use of them costs no memory.
func (p *Program) Buffer(n int) Arg {
	a, _ := p.alloc(n)
	return a
}

// Words puts 64-bit words into the program's memory.
func (p *Program) Words(w ...uint64) Arg {
	a, m := p.alloc(8 * len(w))
	for i, v := range w {
		if m != nil {
			putWord(m[8*i:], v)
		}
	}
	return a
}

// StrVec puts a NULL-terminated vector of strings (argv, envp) into the
// program's memory.
func (p *Program) StrVec(s []string) Arg {
	w := make([]uint64, len(s)+1)
	for i := range s {
		w[i] = p.Str(s[i]).v
	}
	return p.Words(w...)
}

func (p *Program) alloc(n int) (Arg, []byte) {
	if p.err != nil {
		return Nil, nil
	}
	addr, b := p.mem.alloc(n)
	if b == nil {
		p.Fail(sys.Invalidf("%s: launch program larger than %d bytes", p.steps[p.step], dataSize))
	}
	return Arg{v: addr}, b
}
