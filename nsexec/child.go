package nsexec

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Child is a process between clone3 and execve. Its methods are for one
// goroutine; the embedded Process is for all.
type Child struct {
	*Process
	status  *statusSocket // the parent's end
	program *Program
}

// Registers is what a child at a gate tells: the number of an fd it has open is
// found under the register that keeps it.
type Registers [numRegs]uint64

// Fd returns the fd number a register holds.
func (r *Registers) Fd(reg Reg) int { return int(r[reg]) }

// Gate returns which gate the child stands at.
func (r *Registers) Gate() GateID { return GateID(r[regPC]) }

// StepError says which step of a launch failed and why.
type StepError struct {
	Step    string     // "mount proc on /proc"
	Syscall string     // "fsmount"; empty when the program itself refused to go on
	Errno   unix.Errno // for errors.Is
}

func (e *StepError) Error() string {
	if e.Syscall == "" {
		return e.Step
	}
	return fmt.Sprintf("%s: %s (%s)", e.Step, e.Errno.Error(), e.Syscall)
}

func (e *StepError) Unwrap() error { return e.Errno }

// ErrDied says that the child ended before it got as far as asked for.
var ErrDied = errors.New("the process ended before its program was loaded")

// AwaitGate waits until the child stands at its next gate. A *StepError says
// what failed instead.
func (c *Child) AwaitGate(deadline time.Time) (*Registers, error) {
	regs, err := c.receive(deadline)
	if errors.Is(err, io.EOF) {
		return nil, c.died()
	}
	return regs, err
}

// AwaitExec waits until the child runs its program. It closes the status socket.
func (c *Child) AwaitExec(deadline time.Time) error {
	_, err := c.receive(deadline)
	if errors.Is(err, io.EOF) { // it has let go of the program's memory
		c.status.close()
		c.program.recycle()
		return nil
	}
	c.Abandon()
	if err == nil {
		err = fmt.Errorf("launch program: unexpected gate")
	}
	return err
}

// Open lets the child pass the gate it stands at.
func (c *Child) Open() error {
	err := c.status.write(1)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return c.died()
	}
	if err != nil {
		return fmt.Errorf("let process %d pass a gate: %w", c.PID(), err)
	}
	return nil
}

// Abandon closes the status socket and releases the program: a child at a gate
// ends by itself, one that runs its program is not affected.
func (c *Child) Abandon() {
	c.startWatch()
	c.status.close()
	c.program.Close()
}

// died waits for the exit status, which is only a moment away, to tell it.
func (c *Child) died() error {
	select {
	case <-c.Done():
	case <-time.After(10 * time.Second):
		return ErrDied
	}
	if st := c.Exit(); st.Signal != 0 {
		return fmt.Errorf("%w (killed by %s)", ErrDied, unix.SignalName(st.Signal))
	}
	return fmt.Errorf("%w (exit code %d)", ErrDied, c.Exit().Code)
}

func (c *Child) receive(deadline time.Time) (*Registers, error) {
	if c.owner.brief.Add(1) <= briefWaits {
		c.status.waitBriefly()
	}
	c.owner.brief.Add(-1)
	var buf [8 * numRegs]byte
	n, err := c.status.read(buf[:], deadline)
	c.startWatch()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, fmt.Errorf("process %d did not get ready in time: %w", c.PID(), err)
	case errors.Is(err, unix.ECONNRESET):
		return nil, io.EOF
	case err != nil:
		return nil, err
	case n != len(buf):
		return nil, fmt.Errorf("launch status: message of %d bytes", n)
	}
	regs := new(Registers)
	for i := range regs {
		regs[i] = word(buf[8*i:])
	}
	if e := regs[regErrno]; e != 0 {
		return nil, c.program.stepError(regs[regPC], unix.Errno(e))
	}
	return regs, nil
}

// stepError turns the address of a failed instruction into a sentence.
func (p *Program) stepError(pc uint64, e unix.Errno) error {
	i := (int64(pc) - int64(p.mem.addr(insnOff))) / insnSize
	if i < 0 || i >= int64(p.n) {
		return &StepError{Step: "prepare the process", Syscall: "close_range", Errno: e}
	}
	err := &StepError{Step: p.steps[p.stepOf[i]], Errno: e}
	if in := p.mem.insn(int(i)); in.nr&pseudo == 0 {
		err.Syscall = syscallName(in.nr)
	}
	return err
}
