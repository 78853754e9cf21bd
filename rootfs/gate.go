package rootfs

import (
	"os"
	"time"

	"vminit/nsexec"
)

// GateHandler is what the parent does while a child waits at a gate; the child goes
// on after nil and must be ended after an error.
type GateHandler = func(*nsexec.Child, *nsexec.Registers) error

// gateTimeout bounds what is done at one gate.
const gateTimeout = 30 * time.Second

// visit is what the parent sees of a child at a gate.
type visit struct {
	*Compiler
	child    *nsexec.Child
	regs     *nsexec.Registers
	deadline time.Time
}

// gate makes the child wait until the parent has done something.
func (c *Compiler) gate(name string, do func(*visit) error) {
	c.opt.Gate(name, func(child *nsexec.Child, regs *nsexec.Registers) error {
		return do(&visit{c, child, regs, time.Now().Add(gateTimeout)})
	})
}

// file fetches the fd that a register of the child holds. The caller closes it.
func (v *visit) file(r nsexec.Reg) (*os.File, error) {
	fd, err := v.child.GetFd(v.regs.Fd(r))
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), ""), nil
}
