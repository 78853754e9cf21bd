package seccomp

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// reference evaluates a valid profile for one system call, straight from its
// text and as slowly as it likes. It shares only the number tables with the
// compiler.
func reference(p *specs.LinuxSeccomp, native specs.Arch, d *data) uint32 {
	abi, ok := abiOf(p, native, d)
	deflt := refAction(p.DefaultAction, p.DefaultErrnoRet)
	if !ok {
		if d.arch == unix.AUDIT_ARCH_X86_64 && d.nr == 0xffffffff && refListed(p, native, specs.ArchX86_64) {
			return deflt
		}
		return unix.SECCOMP_RET_KILL_THREAD
	}
	numbers := refNumbers(abi)
	name, newest := "", int64(-1)
	for n, nr := range numbers {
		if nr == d.nr {
			name = n
		}
		if named(p, n) && !refSpecial(abi, nr) {
			newest = max(newest, int64(nr))
		}
	}
	if name == "socketcall" || name == "ipc" {
		if abi == specs.ArchX86 {
			return refMux(p, name, uint32(d.args[0]), d, deflt)
		}
	}
	if int64(d.nr) > newest && newest >= 0 && !refSpecial(abi, d.nr) {
		switch p.DefaultAction {
		case specs.ActAllow, specs.ActLog, specs.ActTrace:
		default:
			return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
		}
	}
	if act, ok := refRules(p, name, abi, d, deflt); ok {
		return act
	}
	return deflt
}

func refListed(p *specs.LinuxSeccomp, native, a specs.Arch) bool {
	return native == a || slices.Contains(p.Architectures, a)
}

// abiOf finds the listed architecture a call belongs to.
func abiOf(p *specs.LinuxSeccomp, native specs.Arch, d *data) (specs.Arch, bool) {
	abi := specs.Arch("")
	switch d.arch {
	case unix.AUDIT_ARCH_X86_64:
		abi = specs.ArchX86_64
		if d.nr >= 1<<30 {
			abi = specs.ArchX32
		}
	case unix.AUDIT_ARCH_I386:
		abi = specs.ArchX86
	case unix.AUDIT_ARCH_AARCH64:
		abi = specs.ArchAARCH64
	case unix.AUDIT_ARCH_ARM:
		abi = specs.ArchARM
	}
	return abi, refListed(p, native, abi)
}

func refNumbers(a specs.Arch) map[string]uint32 {
	m := map[string]uint32{}
	arch := knownArch(a)
	for _, e := range arch.table {
		m[callName(int(e.name))] = arch.number(e)
	}
	return m
}

func refSpecial(a specs.Arch, nr uint32) bool {
	return a == specs.ArchX32 && nr >= 1<<30+512 && nr <= 1<<30+547 || a == specs.ArchARM && nr >= 0xf0001 && nr <= 0xf0006
}

func named(p *specs.LinuxSeccomp, name string) bool {
	return slices.ContainsFunc(p.Syscalls, func(s specs.LinuxSyscall) bool { return slices.Contains(s.Names, name) })
}

func refAction(a specs.LinuxSeccompAction, errno *uint) uint32 {
	v := uint32(1)
	if errno != nil {
		v = uint32(*errno)
	}
	return map[specs.LinuxSeccompAction]uint32{
		specs.ActKill: 0, specs.ActKillThread: 0, specs.ActKillProcess: 0x80000000, specs.ActTrap: 0x30000,
		specs.ActErrno: 0x50000 | v, specs.ActTrace: 0x7ff00000 | v, specs.ActLog: 0x7ffc0000,
		specs.ActAllow: 0x7fff0000, specs.ActNotify: 0x7fc00000,
	}[a]
}

// refRules is the verdict of the rules for a name, if there is one.
func refRules(p *specs.LinuxSeccomp, name string, abi specs.Arch, d *data, deflt uint32) (uint32, bool) {
	for _, s := range p.Syscalls { // the first unconditional rule beats all
		if act := refAction(s.Action, s.ErrnoRet); slices.Contains(s.Names, name) && len(s.Args) == 0 && act != deflt {
			return act, true
		}
	}
	for _, s := range p.Syscalls {
		act := refAction(s.Action, s.ErrnoRet)
		if !slices.Contains(s.Names, name) || act == deflt {
			continue
		}
		count := map[uint]int{}
		all, one, repeated := true, false, false
		for _, a := range s.Args {
			holds := refCond(a, abi, d)
			all, one = all && holds, one || holds
			count[a.Index]++
			repeated = repeated || count[a.Index] > 1
		}
		if all && !repeated || one && repeated {
			return act, true
		}
	}
	return 0, false
}

func refCond(a specs.LinuxSeccompArg, abi specs.Arch, d *data) bool {
	arg, v, v2 := d.args[a.Index], a.Value, a.ValueTwo
	if abi == specs.ArchX86 || abi == specs.ArchX32 || abi == specs.ArchARM {
		arg, v, v2 = uint64(uint32(arg)), uint64(uint32(v)), uint64(uint32(v2))
	}
	switch a.Op {
	case specs.OpNotEqual:
		return arg != v
	case specs.OpLessThan:
		return arg < v
	case specs.OpLessEqual:
		return arg <= v
	case specs.OpEqualTo:
		return arg == v
	case specs.OpGreaterEqual:
		return arg >= v
	case specs.OpGreaterThan:
		return arg > v
	}
	return arg&v == v2&v
}

var refMuxed = map[string]map[uint32]string{
	"socketcall": {1: "socket", 2: "bind", 3: "connect", 4: "listen", 5: "accept", 6: "getsockname", 7: "getpeername",
		8: "socketpair", 9: "send", 10: "recv", 11: "sendto", 12: "recvfrom", 13: "shutdown", 14: "setsockopt",
		15: "getsockopt", 16: "sendmsg", 17: "recvmsg", 18: "accept4", 19: "recvmmsg", 20: "sendmmsg"},
	"ipc": {1: "semop", 2: "semget", 3: "semctl", 4: "semtimedop", 11: "msgsnd", 12: "msgrcv", 13: "msgget",
		14: "msgctl", 21: "shmat", 22: "shmdt", 23: "shmget", 24: "shmctl"},
}

// refMux: rules for the multiplexer itself, then those for what it stands for.
func refMux(p *specs.LinuxSeccomp, mux string, which uint32, d *data, deflt uint32) uint32 {
	if act, ok := refRules(p, mux, specs.ArchX86, d, deflt); ok {
		return act
	}
	if mux == "ipc" {
		which &= 0xffff
	}
	name, best, unconditional := refMuxed[mux][which], deflt, false
	for _, s := range p.Syscalls {
		act := refAction(s.Action, s.ErrnoRet)
		switch {
		case name == "" || unconditional || act == deflt || !slices.Contains(s.Names, name):
		case len(s.Args) == 0:
			best, unconditional = act, true
		case rank(act) > rank(best):
			best = act
		}
	}
	return best
}

// rank of an action when filters disagree, the most severe highest.
func rank(act uint32) int {
	return slices.Index([]uint32{0x7fff0000, 0x7ffc0000, 0x7ff00000, 0x7fc00000, 0x50000, 0x30000, 0, 0x80000000}, act&0xffff0000)
}
