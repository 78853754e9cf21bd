package nsexec

import (
	"encoding/binary"
	"fmt"
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

// maxCapWarnings is how many capabilities of a set are named that are left out: a
// hostile config may list any number.
const maxCapWarnings = 20

// parseCaps reads them. What nobody knows, what is not in grantable and what the
// kernel would refuse is left out with a warning, as the spec has it.
func parseCaps(c *specs.LinuxCapabilities, grantable uint64) (s capSets, warnings []string) {
	if c == nil { // no capabilities in the spec means none for the process
		return s, nil
	}
	warn := func(set string, names []string, why string) {
		more := len(names) - maxCapWarnings
		for _, name := range names[:min(len(names), maxCapWarnings)] {
			warnings = append(warnings, fmt.Sprintf("process.capabilities.%s: %.40s is left out: %s", set, name, why))
		}
		if more > 0 {
			warnings = append(warnings, fmt.Sprintf("process.capabilities.%s: %d more are left out: %s", set, more, why))
		}
	}
	for _, x := range []struct {
		set   *uint64
		field string
		names []string
	}{
		{&s.bounding, "bounding", c.Bounding}, {&s.effective, "effective", c.Effective}, {&s.permitted, "permitted", c.Permitted},
		{&s.inheritable, "inheritable", c.Inheritable}, {&s.ambient, "ambient", c.Ambient},
	} {
		mask, unknown := capSet(x.names)
		warn(x.field, unknown, "there is no such capability")
		warn(x.field, capList(mask&^grantable), "the daemon does not have it to give")
		*x.set = mask & grantable
	}
	// What the kernel would refuse (capabilities(7), "Programmatically adjusting
	// capability sets"; PR_CAP_AMBIENT_RAISE in prctl(2)).
	for _, x := range []struct {
		set    *uint64
		field  string
		within uint64
		why    string
	}{
		{&s.effective, "effective", s.permitted, "it is not permitted"},
		{&s.inheritable, "inheritable", s.bounding, "it is not in the bounding set"},
		{&s.ambient, "ambient", s.permitted & s.inheritable, "it is not both permitted and inheritable"},
	} {
		warn(x.field, capList(*x.set&^x.within), x.why)
		*x.set &= x.within
	}
	return s, warnings
}

// capList names the capabilities of a mask.
func capList(mask uint64) (names []string) {
	for i, n := range capNames {
		if mask>>i&1 != 0 {
			names = append(names, "CAP_"+n)
		}
	}
	return names
}

// heldCapabilities are those this process may pass on (capget(2)).
func heldCapabilities() (uint64, error) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return 0, fmt.Errorf("look at our own capabilities: %w", err)
	}
	return uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted), nil
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
			p.Call(unix.SYS_PRCTL, Int(unix.PR_CAP_AMBIENT), Int(unix.PR_CAP_AMBIENT_RAISE), Int(c), Int(0), Int(0)).Ignore(unix.EINVAL) // not known to this kernel
		}
	}
}
