package report

import (
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// capNames in the order of their numbers (include/uapi/linux/capability.h,
// complete since kernel 5.9).
var capNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

func capName(n int) string {
	if n < len(capNames) {
		return "CAP_" + capNames[n]
	}
	return "CAP_" + strconv.Itoa(n)
}

func (r *Report) credentials() {
	u, g := &r.UIDs, &r.GIDs
	u.Real, u.Effective, u.Saved = unix.Getresuid()
	g.Real, g.Effective, g.Saved = unix.Getresgid()
	// An invalid id changes nothing and the present one comes back.
	u.FS, _ = unix.SetfsuidRetUid(-1)
	g.FS, _ = unix.SetfsgidRetGid(-1)
	var err error
	r.Groups, err = unix.Getgroups()
	r.fail("groups", err)
	slices.Sort(r.Groups)

	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	r.fail("capabilities", unix.Capget(&hdr, &data[0]))
	join := func(low, high uint32) []string {
		bits := uint64(high)<<32 | uint64(low)
		return capSet(func(n int) bool { return bits&(1<<n) != 0 })
	}
	r.Capabilities = Capabilities{
		Effective:   join(data[0].Effective, data[1].Effective),
		Permitted:   join(data[0].Permitted, data[1].Permitted),
		Inheritable: join(data[0].Inheritable, data[1].Inheritable),
		Bounding: capSet(func(n int) bool {
			v, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0)
			return err == nil && v == 1
		}),
		Ambient: capSet(func(n int) bool {
			v, err := unix.PrctlRetInt(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_IS_SET, uintptr(n), 0, 0)
			return err == nil && v == 1
		}),
	}
}

// capSet names the capabilities for which has is true; never nil.
func capSet(has func(n int) bool) []string {
	names := []string{}
	for n := range 64 {
		if has(n) {
			names = append(names, capName(n))
		}
	}
	return names
}

var rlimitNames = map[string]int{
	"CPU": unix.RLIMIT_CPU, "FSIZE": unix.RLIMIT_FSIZE, "DATA": unix.RLIMIT_DATA, "STACK": unix.RLIMIT_STACK,
	"CORE": unix.RLIMIT_CORE, "RSS": unix.RLIMIT_RSS, "NPROC": unix.RLIMIT_NPROC, "NOFILE": unix.RLIMIT_NOFILE,
	"MEMLOCK": unix.RLIMIT_MEMLOCK, "AS": unix.RLIMIT_AS, "LOCKS": unix.RLIMIT_LOCKS,
	"SIGPENDING": unix.RLIMIT_SIGPENDING, "MSGQUEUE": unix.RLIMIT_MSGQUEUE, "NICE": unix.RLIMIT_NICE,
	"RTPRIO": unix.RLIMIT_RTPRIO, "RTTIME": unix.RLIMIT_RTTIME,
}

func (r *Report) rlimits() {
	r.Rlimits = make(map[string]Rlimit)
	for name, n := range rlimitNames {
		var l unix.Rlimit
		if err := unix.Prlimit(0, n, nil, &l); err != nil {
			r.fail("rlimits", err)
			continue
		}
		r.Rlimits[name] = Rlimit{Soft: l.Cur, Hard: l.Max}
	}
}
