package nsexec

import (
	"encoding/binary"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capNames are the capabilities by number (capabilities(7); linux/capability.h
// of Linux 6.16). CAP_CHECKPOINT_RESTORE came with 5.9.
var capNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE",
	"SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE",
	"AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// capSet turns names such as CAP_NET_ADMIN into a bit mask. Names that are not
// known are returned: the spec has the runtime warn and go on without them.
func capSet(names []string) (mask uint64, unknown []string) {
next:
	for _, name := range names {
		short := strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		for i, n := range capNames {
			if n == short {
				mask |= 1 << i
				continue next
			}
		}
		unknown = append(unknown, name)
	}
	return mask, unknown
}

// capSets are the five sets of a process.
type capSets struct{ bounding, effective, permitted, inheritable, ambient uint64 }

func parseCaps(c *specs.LinuxCapabilities) (s capSets, unknown []string) {
	if c == nil { // no capabilities in the spec means none for the process
		return s, nil
	}
	for _, x := range []struct {
		set   *uint64
		names []string
	}{{&s.bounding, c.Bounding}, {&s.effective, c.Effective}, {&s.permitted, c.Permitted}, {&s.inheritable, c.Inheritable}, {&s.ambient, c.Ambient}} {
		mask, bad := capSet(x.names)
		*x.set = mask
		unknown = append(unknown, bad...)
	}
	return s, unknown
}

// dropBounding removes what the bounding set does not name, while the child
// still has CAP_SETPCAP.
func (p *Program) dropBounding(s capSets) {
	p.Step("drop capabilities from the bounding set")
	for c := range capNames {
		if s.bounding>>c&1 == 0 {
			p.Call(unix.SYS_PRCTL, Int(unix.PR_CAPBSET_DROP), Int(c)).Ignore(unix.EINVAL) // not known to this kernel
		}
	}
}

// setCaps makes the other four sets exactly what the spec says.
func (p *Program) setCaps(s capSets) {
	p.Step("set capabilities")
	data := make([]byte, 24)
	for i, v := range []uint64{s.effective, s.permitted, s.inheritable} {
		binary.NativeEndian.PutUint32(data[4*i:], uint32(v))
		binary.NativeEndian.PutUint32(data[12+4*i:], uint32(v>>32))
	}
	p.Call(unix.SYS_CAPSET, p.Words(unix.LINUX_CAPABILITY_VERSION_3), p.Bytes(data))
	p.Call(unix.SYS_PRCTL, Int(unix.PR_CAP_AMBIENT), Int(unix.PR_CAP_AMBIENT_CLEAR_ALL), Int(0), Int(0), Int(0))
	for c := range capNames {
		if s.ambient>>c&1 != 0 {
			// As runc and crun: one that is not permitted and inheritable is left out.
			p.Call(unix.SYS_PRCTL, Int(unix.PR_CAP_AMBIENT), Int(unix.PR_CAP_AMBIENT_RAISE), Int(c), Int(0), Int(0)).Ignore(unix.EPERM, unix.EINVAL)
		}
	}
}
