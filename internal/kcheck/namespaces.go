package kcheck

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

func namespaceFeatures() []Feature {
	born := func(flag uint64) func(*env) error {
		return func(e *env) error { return e.child(flag, func(*nsexec.Program) {}) }
	}
	return []Feature{
		{Name: "mount namespace", Since: "2.4.19", Need: Required, Loses: "no containers", probe: born(unix.CLONE_NEWNS)},
		{Name: "pid namespace", Since: "2.6.24", Need: Required, Loses: "containers see and signal the guest's processes", probe: func(e *env) error {
			return e.child(unix.CLONE_NEWPID, func(p *nsexec.Program) {
				pid := p.NewReg("pid")
				p.Call(unix.SYS_GETPID).Store(pid)
				cell := p.Words(0)
				p.Poke(cell, pid.Arg())
				p.FailUnlessEqual(unix.EINVAL, "the child of a new pid namespace is not process 1", cell, p.Words(1))
			})
		}},
		{Name: "network namespace", Since: "2.6.29", Need: Required, Loses: "containers share the guest's network", probe: func(e *env) error {
			return e.child(unix.CLONE_NEWNET, func(p *nsexec.Program) { p.LoopbackUp() })
		}},
		{Name: "ipc namespace", Since: "2.6.19", Need: Required, Loses: "containers share System V IPC", probe: born(unix.CLONE_NEWIPC)},
		{Name: "uts namespace", Since: "2.6.19", Need: Required, Loses: "containers have no hostname of their own", probe: func(e *env) error {
			return e.child(unix.CLONE_NEWUTS, func(p *nsexec.Program) { p.SetHostname("vminit-check", "") })
		}},
		{Name: "cgroup namespace", Since: "4.6", Need: Used, Loses: "containers see where in the guest's tree they are", probe: born(unix.CLONE_NEWCGROUP)},
		{Name: "user namespace", Since: "3.8", Need: Used, Loses: "linux.uidMappings are refused", probe: func(e *env) error {
			if errors.Is(e.usernsErr, unix.ENOSPC) {
				return notHere(e.usernsErr, "user.max_user_namespaces is used up or 0")
			}
			return e.usernsErr
		}},
		{Name: "time namespace with offsets", Since: "5.6", Need: Used, Loses: "linux.timeOffsets are refused", probe: func(e *env) error {
			if _, err := os.Stat("/proc/self/timens_offsets"); err != nil {
				return unix.EINVAL // what unshare says, after a longer way
			}
			return e.child(0, func(p *nsexec.Program) { p.EnterTimeNamespace("boottime 86400 0\n", nil) })
		}},
	}
}
