package tasksvc

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/nsexec/seccomp"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden compares with a golden file and shows where they part.
func golden(t *testing.T, name, got string) {
	file := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	want := strings.Split(string(data), "\n")
	for i, line := range strings.Split(got, "\n") {
		if i >= len(want) || line != want[i] {
			require.Equal(t, strings.Join(want[i:min(i+5, len(want))], "\n"), strings.Join(strings.Split(got, "\n")[i:], "\n"), "%s, line %d", file, i+1)
		}
	}
	require.Equal(t, len(want), strings.Count(got, "\n")+1, "%s goes on", file)
}

// plainSpec is the least there is: what a golden file shows beyond it belongs
// to the feature it is about.
func plainSpec() *specs.Spec {
	return &specs.Spec{
		Version: "1.3.0",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/true"}, Env: []string{"HOME=/"}, Cwd: "/"},
		Mounts:  []specs.Mount{{Destination: "/dev", Source: "/dev", Type: "bind", Options: []string{"rbind"}}},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}},
	}
}

func addNamespaces(s *specs.Spec, list ...specs.LinuxNamespace) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, list...)
}

// fullUserNS gives a config a new user namespace.
func fullUserNS(s *specs.Spec) {
	addNamespaces(s, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.GIDMappings = s.Linux.UIDMappings
}

// busyProcess has everything that concerns the process alone.
func busyProcess(p *specs.Process) {
	p.Scheduler = &specs.Scheduler{Policy: specs.SchedDeadline, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}, Runtime: 1e6, Deadline: 2e6, Period: 3e6}
	p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 3}
	p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}}
	p.ApparmorProfile, p.SelinuxLabel = "strict", "system_u:system_r:box_t:s0"
	p.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0", Final: "0-1"}
}

// TestPlans compares what containers would be made of with golden files; it
// needs no privileges.
func TestPlans(t *testing.T) {
	for name, spec := range map[string]*specs.Spec{
		"default": testSpec("true"),
		"terminal": edited(testSpec("true"), func(s *specs.Spec) {
			s.Process.Terminal = true
			s.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{5, 10}}
		}),
		"userns": edited(testSpec("true"), fullUserNS),
		"joined": edited(testSpec("true"), func(s *specs.Spec) {
			s.Linux.Namespaces[4].Path = "/proc/1/ns/net"
			s.Process.NoNewPrivileges = false
			s.Linux.Sysctl = map[string]string{"kernel.msgmax": "1000"}
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActErrno}}}
		}),
		"process": edited(plainSpec(), func(s *specs.Spec) {
			busyProcess(s.Process)
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0,2-3", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
		}),
		"hooks": edited(plainSpec(), func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/hook"}}, StartContainer: []specs.Hook{{Path: "/bin/hook"}}}
			s.Linux.Seccomp = notifying("/run/agent")
			s.Process.NoNewPrivileges = true
		}),
		"time": edited(plainSpec(), func(s *specs.Spec) {
			addNamespaces(s, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: -5}, "boottime": {Secs: 86400, Nanosecs: 7}}
		}),
		"netdevices": edited(plainSpec(), func(s *specs.Spec) {
			addNamespaces(s, specs.LinuxNamespace{Type: specs.NetworkNamespace})
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth1": {Name: "eth0"}}
			s.Linux.Sysctl = map[string]string{"net.ipv4.conf.eth0.forwarding": "1"}
		}),
		"mixed": edited(plainSpec(), func(s *specs.Spec) { // a new user namespace and others by path
			fullUserNS(s)
			busyProcess(s.Process)
			s.Linux.Namespaces[1].Path = "/proc/1/ns/pid"
			addNamespaces(s, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/proc/1/ns/net"}, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth1": {}}
		}),
		"user-joined": edited(plainSpec(), func(s *specs.Spec) {
			addNamespaces(s, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/proc/1/ns/user"}, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: "/proc/1/ns/ipc"})
		}),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			data, err := json.Marshal(spec)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
			got, err := Plan(dir)
			require.NoError(t, err)
			golden(t, "plan-"+name+".golden", strings.ReplaceAll(got, dir, "/bundle"))
		})
	}
}

func edited(s *specs.Spec, edit func(*specs.Spec)) *specs.Spec {
	edit(s)
	return s
}

// TestExecPlans is TestPlans for execs.
func TestExecPlans(t *testing.T) {
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET
	for name, x := range map[string]struct {
		join  uint64
		edit  func(*specs.Process)
		linux specs.Linux
		tasks []string
		late  bool
	}{
		"default":  {join: all, edit: func(*specs.Process) {}},
		"process":  {join: all, edit: busyProcess, linux: specs.Linux{Personality: &specs.LinuxPersonality{Domain: specs.PerLinux}}},
		"userns":   {join: all | unix.CLONE_NEWUSER, edit: busyProcess},
		"resctrl":  {join: all, edit: func(*specs.Process) {}, tasks: []string{"/sys/fs/resctrl/gold/tasks"}},
		"terminal": {join: all, edit: func(p *specs.Process) { p.Terminal, p.User.UID = true, 1000 }},
		"late":     {join: all, edit: func(p *specs.Process) { p.Terminal = true }, late: true},
	} {
		t.Run(name, func(t *testing.T) {
			proc := plainSpec().Process
			proc.Env = nil
			x.edit(proc)
			pl, _, err := compileExec(proc, &x.linux, x.join, compileOptions{id: "ID", seccomp: new(seccomp.Cache), home: "/root", tasks: x.tasks, traced: x.late})
			require.NoError(t, err)
			defer pl.program.Close()
			golden(t, "exec-"+name+".golden", pl.program.String())
		})
	}
}
