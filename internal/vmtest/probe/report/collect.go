package report

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Collect looks at everything. sysctls are names like net.ipv4.ip_forward or
// net/ipv4/ip_forward.
func Collect(sysctls []string) *Report {
	r := &Report{Errors: make(map[string]string)}
	r.fds() // before anything else is opened
	r.Argv, r.Env = os.Args, os.Environ()
	r.process()
	r.status()
	r.namespaces()
	r.credentials()
	r.rlimits()
	r.early()
	r.scheduling()
	r.keyring()
	r.tty()
	r.mounts()
	r.cgroup()
	r.devices()
	r.interfaces()
	r.sysctls(sysctls)
	return r
}

// fail notes why a part is empty.
func (r *Report) fail(part string, err error) {
	if err != nil {
		r.Errors[part] = err.Error()
	}
}

// text reads a small file of /proc without its last newline.
func (r *Report) text(part, path string) string {
	b, err := os.ReadFile(path)
	r.fail(part, err)
	return strings.TrimRight(string(b), "\n\x00")
}

// optional is text for files that some kernels do not have.
func (r *Report) optional(part, path string) string {
	s := r.text(part, path)
	delete(r.Errors, part)
	return s
}

func (r *Report) process() {
	r.PID, r.PPID = os.Getpid(), os.Getppid()
	var err error
	r.PGID, err = unix.Getpgid(0)
	r.fail("pgid", err)
	r.SID, err = unix.Getsid(0)
	r.fail("sid", err)

	// os.Getwd would believe $PWD.
	buf := make([]byte, 2*unix.PathMax)
	n, err := unix.Getcwd(buf)
	r.fail("cwd", err)
	r.Cwd = unix.ByteSliceToString(buf[:max(n, 0)])

	r.Exe, err = os.Readlink("/proc/self/exe")
	r.fail("exe", err)
	r.Init, err = os.Readlink("/proc/1/exe")
	r.fail("init", err)

	var u unix.Utsname
	r.fail("hostname", unix.Uname(&u))
	r.Hostname = unix.ByteSliceToString(u.Nodename[:])
	r.Domainname = unix.ByteSliceToString(u.Domainname[:])
	r.Kernel = unix.ByteSliceToString(u.Release[:])

	r.Umask = unix.Umask(0)
	unix.Umask(r.Umask)
	r.OOMScoreAdj, err = strconv.Atoi(r.text("oom_score_adj", "/proc/self/oom_score_adj"))
	if r.Errors["oom_score_adj"] == "" {
		r.fail("oom_score_adj", err)
	}
	r.Label = r.optional("label", "/proc/self/attr/current")
}

// status reads /proc/self/status, which is that of the first thread.
func (r *Report) status() {
	r.Status = make(map[string]string)
	for line := range strings.Lines(r.text("status", "/proc/self/status")) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			r.Status[k] = strings.TrimSpace(v)
		}
	}
	r.NoNewPrivs = r.Status["NoNewPrivs"] == "1"
	r.THPDisabled = r.Status["THP_enabled"] == "0"
	r.Seccomp, _ = strconv.Atoi(r.Status["Seccomp"])
	r.Filters, _ = strconv.Atoi(r.Status["Seccomp_filters"])
	r.Signals = Signals{
		Blocked: signalNames(r.Status["SigBlk"]),
		Ignored: signalNames(r.Status["SigIgn"]),
		Pending: signalNames(r.Status["ShdPnd"], r.Status["SigPnd"]),
	}
}

// signalNames names the bits of hexadecimal masks.
func signalNames(masks ...string) []string {
	var bits uint64
	for _, m := range masks {
		b, _ := strconv.ParseUint(m, 16, 64)
		bits |= b
	}
	return bitNames(bits)
}

// bitNames names the signals of a mask; never nil.
func bitNames(bits uint64) []string {
	names := []string{}
	for n := 1; n <= 64; n++ {
		if bits&(1<<(n-1)) == 0 {
			continue
		}
		name := unix.SignalName(unix.Signal(n))
		if name == "" {
			name = "SIG" + strconv.Itoa(n)
		}
		names = append(names, name)
	}
	return names
}

func (r *Report) namespaces() {
	r.Namespaces = make(map[string]uint64)
	list, err := os.ReadDir("/proc/self/ns")
	r.fail("namespaces", err)
	for _, e := range list {
		var st unix.Stat_t
		if err := unix.Stat("/proc/self/ns/"+e.Name(), &st); err != nil {
			r.fail("namespaces", err)
			continue
		}
		r.Namespaces[e.Name()] = st.Ino
	}
	r.UIDMap = r.text("uid_map", "/proc/self/uid_map")
	r.GIDMap = r.text("gid_map", "/proc/self/gid_map")
	r.Setgroups = r.text("setgroups", "/proc/self/setgroups")
	r.TimeOffset = r.optional("timens_offsets", "/proc/self/timens_offsets")
}

func (r *Report) sysctls(names []string) {
	r.Sysctls = make(map[string]string)
	for _, n := range names {
		b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(n, ".", "/"))
		if err != nil {
			r.fail("sysctl "+n, err)
			continue
		}
		r.Sysctls[n] = strings.TrimSpace(string(b))
	}
}
