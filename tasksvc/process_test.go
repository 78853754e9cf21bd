package tasksvc

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/vmtest/probe/report"
)

func ptr[T any](v T) *T { return &v }

// TestScheduler asks for every policy and has a process in the container say
// which one it has.
func TestScheduler(t *testing.T) {
	h := newHost(t)
	for name, x := range map[string]struct {
		ask  specs.Scheduler
		want report.Sched
	}{
		"other":    {specs.Scheduler{Policy: specs.SchedOther, Nice: -7}, report.Sched{Policy: "SCHED_OTHER", Nice: -7}},
		"batch":    {specs.Scheduler{Policy: specs.SchedBatch, Nice: 19}, report.Sched{Policy: "SCHED_BATCH", Nice: 19}},
		"idle":     {specs.Scheduler{Policy: specs.SchedIdle}, report.Sched{Policy: "SCHED_IDLE"}},
		"fifo":     {specs.Scheduler{Policy: specs.SchedFIFO, Priority: 3}, report.Sched{Policy: "SCHED_FIFO", Priority: 3}},
		"rr":       {specs.Scheduler{Policy: specs.SchedRR, Priority: 99, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}, report.Sched{Policy: "SCHED_RR", Priority: 99, Flags: unix.SCHED_FLAG_RESET_ON_FORK}},
		"deadline": {specs.Scheduler{Policy: specs.SchedDeadline, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}, Runtime: 10e6, Deadline: 20e6, Period: 40e6}, report.Sched{Policy: "SCHED_DEADLINE", Flags: unix.SCHED_FLAG_RESET_ON_FORK, Runtime: 10e6, Deadline: 20e6, Period: 40e6}},
	} {
		t.Run(name, func(t *testing.T) {
			for kind, edit := range map[string]func(*specs.Spec){"plain": func(*specs.Spec) {}, "userns": fullUserNS} {
				s := probeSpec()
				s.Process.Scheduler = &x.ask
				edit(s)
				got := h.report(kind+name, s).Scheduler
				if got.Policy != "SCHED_DEADLINE" {
					got.Runtime = 0 // from Linux 6.12 on the slice of the fair ones
				}
				require.Equal(t, x.want, got, kind)
			}
		})
	}
}

func TestIOPriority(t *testing.T) {
	h := newHost(t)
	for class, want := range map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1<<13 | 4, specs.IOPRIO_CLASS_BE: 2<<13 | 4, specs.IOPRIO_CLASS_IDLE: 3<<13 | 4} {
		s := probeSpec()
		s.Process.IOPriority = &specs.LinuxIOPriority{Class: class, Priority: 4}
		require.Equal(t, want, h.report(string(class[13:]), s).IOPriority)
		fullUserNS(s)
		require.Equal(t, want, h.report("u"+string(class[13:]), s).IOPriority)
	}
}

func TestRlimits(t *testing.T) {
	h := newHost(t)
	s := probeSpec()
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 64, Hard: 512}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}, {Type: "RLIMIT_NPROC", Soft: 123, Hard: 456}}
	check := func(r *report.Report) {
		t.Helper()
		require.Equal(t, report.Rlimit{Soft: 64, Hard: 512}, r.Rlimits["NOFILE"])
		require.Equal(t, report.Rlimit{}, r.Rlimits["CORE"])
		require.Equal(t, report.Rlimit{Soft: 123, Hard: 456}, r.Rlimits["NPROC"])
	}
	check(h.report("plain", s))
	fullUserNS(s)
	check(h.report("userns", s))
	proc := *s.Process
	s.Process.Args, s.Process.Rlimits = []string{"/bin/sleep", "1000"}, nil
	h.running("sleeper", s)
	check(h.execReport("sleeper", "exec", &proc))
}

func TestUser(t *testing.T) {
	h := newHost(t)
	s := probeSpec()
	s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{5, 7}, Umask: ptr(uint32(0o27))}
	r := h.report("init", s)
	require.Equal(t, report.IDs{Real: 1000, Effective: 1000, Saved: 1000, FS: 1000}, r.UIDs)
	require.Equal(t, report.IDs{Real: 1001, Effective: 1001, Saved: 1001, FS: 1001}, r.GIDs)
	require.Equal(t, []int{5, 7}, r.Groups)
	require.Equal(t, 0o27, r.Umask)
	home, _ := r.Getenv("HOME")
	require.Equal(t, "/home", home)
}

func TestPersonality(t *testing.T) {
	h := newHost(t)
	s := probeSpec()
	s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	require.Equal(t, uint64(8), h.report("linux32", s).Personality)
	proc := *s.Process
	s.Process.Args = []string{"/bin/sleep", "1000"}
	h.running("sleeper", s)
	require.Equal(t, uint64(8), h.execReport("sleeper", "exec", &proc).Personality)
}

// The memory policy of a process shows at its mappings (numa_maps, proc(5)).
func TestMemoryPolicy(t *testing.T) {
	h := newHost(t)
	if _, err := os.Stat("/proc/self/numa_maps"); err != nil {
		t.Skip("this kernel has no NUMA") // the guest's has
	}
	s := testSpec("exec cat /proc/self/numa_maps")
	s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
	out, errs, code := h.run("bind", s)
	require.Zero(t, code, errs)
	require.Contains(t, out, "bind=static:0")
	s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolDefault, Nodes: "0"}
	h.refused(s, "set the memory policy to MPOL_DEFAULT, nodes \"0\": invalid argument")
}

// refused creates a container that must fail with a text, and leave nothing.
func (h *host) refused(spec *specs.Spec, text string) error {
	h.t.Helper()
	mounts := countMounts(h.t)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "refused", Bundle: h.probeBundle(spec)})
	require.ErrorContains(h.t, err, text)
	require.Equal(h.t, mounts, countMounts(h.t))
	return err
}

func TestTimeOffsets(t *testing.T) {
	h := newHost(t)
	const year = 365 * 86400
	for name, edit := range map[string]func(*specs.Spec){"plain": func(*specs.Spec) {}, "userns": fullUserNS} {
		s := testSpec("cat /proc/uptime /proc/self/timens_offsets")
		addNamespaces(s, specs.LinuxNamespace{Type: specs.TimeNamespace})
		s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 10, Nanosecs: 20}, "boottime": {Secs: year}}
		edit(s)
		out, _, code := h.run(name, s)
		require.Zero(t, code, out)
		f := strings.Fields(out)
		uptime, err := strconv.ParseFloat(f[0], 64)
		require.NoError(t, err)
		require.Greater(t, uptime, float64(year))
		require.Equal(t, []string{"monotonic", "10", "20", "boottime", strconv.Itoa(year), "0"}, f[2:])
	}
	// Without offsets it is clone3 that makes the namespace.
	s := probeSpec()
	addNamespaces(s, specs.LinuxNamespace{Type: specs.TimeNamespace})
	require.NotEqual(t, ownNamespace(t, "time"), h.report("none", s).Namespaces["time"])
}

func ownNamespace(t testing.TB, name string) uint64 {
	var st unix.Stat_t
	require.NoError(t, unix.Stat("/proc/self/ns/"+name, &st))
	return st.Ino
}

func TestHome(t *testing.T) {
	h := newHost(t)
	home := func(r *report.Report) string {
		v, ok := r.Getenv("HOME")
		require.True(t, ok)
		return v
	}
	for name, x := range map[string]struct {
		edit func(*specs.Process)
		want string
	}{
		"root":    {func(*specs.Process) {}, "/root"},
		"user":    {func(p *specs.Process) { p.User.UID = 1000 }, "/home"},
		"unknown": {func(p *specs.Process) { p.User.UID = 4242 }, "/"},
		"given":   {func(p *specs.Process) { p.Env = append(p.Env, "HOME=/given") }, "/given"},
		"empty":   {func(p *specs.Process) { p.Env = append(p.Env, "HOME=") }, "/root"},
	} {
		s := probeSpec()
		x.edit(s.Process)
		require.Equal(t, x.want, home(h.report(name, s)), name)
	}
	s := probeSpec()
	proc := *s.Process
	proc.User.UID = 1000
	s.Process.Args = []string{"/bin/sleep", "1000"}
	h.running("sleeper", s)
	require.Equal(t, "/home", home(h.execReport("sleeper", "exec", &proc)))
}

// TestHostilePasswd has /etc/passwd be what should neither be opened nor read.
func TestHostilePasswd(t *testing.T) {
	h := newHost(t)
	secret := filepath.Join(t.TempDir(), "passwd")
	require.NoError(t, os.WriteFile(secret, []byte("root:x:0:0:root:/secret:/bin/sh\n"), 0o644))
	for name, x := range map[string]struct {
		make    func(path string) error
		want    string // HOME
		refused string
	}{
		"absent":  {func(string) error { return nil }, "/", ""},
		"outside": {func(p string) error { return os.Symlink(secret, p) }, "/", ""},
		"upwards": {func(p string) error { return os.Symlink("../../../../../.."+secret, p) }, "/", ""},
		"inside":  {func(p string) error { return os.Symlink("/etc/other", p) }, "/other", ""},
		"magic":   {func(p string) error { return os.Symlink("/proc/self/fd/0", p) }, "/", ""},
		"fifo":    {func(p string) error { return unix.Mkfifo(p, 0o644) }, "", "not a regular file"},
		"device":  {func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) }, "", "not a regular file"},
		"huge":    {func(p string) error { return os.WriteFile(p, make([]byte, maxPasswd+1), 0o644) }, "", "more than the 1048576 allowed"},
		"mounted": {nil, "/mounted", ""},
		"garbage": {func(p string) error { return os.WriteFile(p, []byte("\x00:::\nroot:x:0:0:r:relative:sh\n"), 0o644) }, "/", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			s := probeSpec()
			dir := h.probeBundle(s)
			etc := filepath.Join(dir, "rootfs/etc")
			require.NoError(t, os.Remove(etc+"/passwd"))
			require.NoError(t, os.WriteFile(etc+"/other", []byte("root:x:0:0:root:/other:/bin/sh\n"), 0o644))
			if x.make == nil { // it comes by a bind mount
				mounted := filepath.Join(t.TempDir(), "passwd")
				require.NoError(t, os.WriteFile(mounted, []byte("root:x:0:0:root:/mounted:/bin/sh\n"), 0o644))
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/passwd", Source: mounted, Type: "bind", Options: []string{"bind"}})
				data, err := json.Marshal(s)
				require.NoError(t, err)
				require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
			} else {
				require.NoError(t, x.make(etc+"/passwd"))
			}
			out := h.fifo(name)
			read := h.reader(out)
			_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c", Bundle: dir, Stdout: out})
			if x.refused != "" {
				require.ErrorContains(t, err, x.refused)
				return
			}
			require.NoError(t, err)
			_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c"})
			require.NoError(t, err)
			_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c"})
			require.NoError(t, err)
			h.delete("c")
			got, _ := parseReport(t, read()).Getenv("HOME")
			require.Equal(t, x.want, got)
		})
	}
}

func TestExecCPUAffinity(t *testing.T) {
	h := newHost(t)
	var all unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(0, &all))
	s := probeSpec()
	s.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0"} // not for init
	proc := *s.Process
	require.Len(t, h.report("init", s).CPUs, all.Count())
	s.Process.Args = []string{"/bin/sleep", "1000"}
	h.running("sleeper", s)
	for name, x := range map[string]struct {
		a    *specs.CPUAffinity
		want []int
	}{
		"inherited": {nil, []int{0}},
		"initial":   {&specs.CPUAffinity{Initial: "1"}, []int{1}},
		"both":      {&specs.CPUAffinity{Initial: "0", Final: "0-1"}, []int{0, 1}},
	} {
		if all.Count() < 2 {
			t.Skip("needs two CPUs")
		}
		proc.ExecCPUAffinity = x.a
		r := h.execReport("sleeper", name, &proc)
		require.Equal(t, x.want, r.CPUs, name)
		require.NotContains(t, r.Cgroup.Path, "..", "it is in the container's cgroup")
	}
	proc.ExecCPUAffinity = &specs.CPUAffinity{Final: "8191"}
	data, err := json.Marshal(&proc)
	require.NoError(t, err)
	_, err = h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: "sleeper", ExecID: "bad", Spec: &anypb.Any{Value: data}})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "sleeper", ExecID: "bad"})
	require.ErrorContains(t, err, "set the CPU affinity to 8191 (process.execCPUAffinity.final): invalid argument")
	_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: "sleeper", ExecID: "bad"})
	require.NoError(t, err)
}

// TestLabelsWithoutLSM: what a kernel without the module is asked for is
// refused, and says so. With one see internal/vmtest.
func TestLabelsWithoutLSM(t *testing.T) {
	h := newHost(t)
	if lsm, err := os.ReadFile("/sys/kernel/security/lsm"); err == nil {
		t.Skipf("this kernel has %s", lsm)
	}
	s := probeSpec()
	s.Process.ApparmorProfile = "strict"
	require.ErrorIs(t, h.refused(s, "process.apparmorProfile: this kernel runs without AppArmor"), unix.EOPNOTSUPP)
	s.Process.ApparmorProfile, s.Process.SelinuxLabel = "", "system_u:system_r:box_t:s0"
	require.ErrorIs(t, h.refused(s, "process.selinuxLabel: this kernel runs without SELinux"), unix.EOPNOTSUPP)
}

// A filter that kills what it does not know lets be told that the program is not
// there.
func TestNotFoundUnderFilter(t *testing.T) {
	h := newHost(t)
	for _, action := range []specs.LinuxSeccompAction{specs.ActKillProcess, specs.ActErrno} {
		s := testSpec("")
		s.Process.Args = []string{"nosuch"}
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: action, Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchAARCH64},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"rt_sigprocmask", "execve", "write", "sendto", "exit_group", "openat2"}, Action: specs.ActAllow}}}
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(s)})
		require.NoError(t, err)
		_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
		require.EqualError(t, err, `exec "nosuch": executable file not found in $PATH`)
		h.delete("c1")
	}
}
