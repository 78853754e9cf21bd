package kcheck

import (
	"os"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// processExercises are about the process and what confines it.
func processExercises() []Exercise {
	return []Exercise{
		{
			Name: "seccomp", Features: []string{"seccomp filter", "seccomp LOG", "seccomp flag LOG", "seccomp flag SPEC_ALLOW"},
			Edit: func(s *specs.Spec, _ Site) bool {
				s.Linux.Seccomp = &specs.LinuxSeccomp{
					DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow},
					Syscalls: []specs.LinuxSyscall{
						{Names: []string{"syncfs"}, Action: specs.ActErrno, ErrnoRet: ref(uint(unix.EXDEV))},
						{Names: []string{"fdatasync"}, Action: specs.ActLog},
					},
				}
				return true
			},
			inside: func() (list []Sight) {
				refused, logged := unix.Syncfs(-1), unix.Fdatasync(-1) // EBADF without a filter
				ok := refused == unix.EXDEV && field("/proc/self/status", "Seccomp:") == "2"
				for _, f := range []string{"seccomp filter", "seccomp flag LOG", "seccomp flag SPEC_ALLOW"} {
					list = append(list, saw(f, ok, "a refused call: %s; Seccomp: %s", outcome(refused), field("/proc/self/status", "Seccomp:")))
				}
				return append(list, saw("seccomp LOG", logged == unix.EBADF, "a logged call: %s", outcome(logged)))
			},
		},
		{
			Name: "user namespace", Alone: true, Features: []string{"user namespace"},
			Edit: func(s *specs.Spec, _ Site) bool {
				s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
				s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
				s.Linux.GIDMappings = s.Linux.UIDMappings
				return true
			},
			inside: func() []Sight {
				m := strings.Join(strings.Fields(text("/proc/self/uid_map")), " ")
				return []Sight{saw("user namespace", m == "0 100000 65536" && os.Getuid() == 0, "uid_map %q, uid %d", m, os.Getuid())}
			},
		},
		{
			Name: "time namespace", Features: []string{"time namespace with offsets"},
			Edit: func(s *specs.Spec, _ Site) bool {
				s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
				s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1_000_000_000}}
				return true
			},
			inside: func() []Sight {
				var ts unix.Timespec
				err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
				return []Sight{saw("time namespace with offsets", err == nil && ts.Sec >= 1_000_000_000, "booted %d s ago, %s", ts.Sec, outcome(err))}
			},
		},
		{
			Name: "ambient capabilities", Alone: true, Features: []string{"ambient capabilities"},
			Edit: func(s *specs.Spec, _ Site) bool {
				raw := []string{"CAP_NET_RAW"}
				s.Process.User = specs.User{UID: 1000, GID: 1000}
				s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: raw, Effective: raw, Permitted: raw, Inheritable: raw, Ambient: raw}
				return true
			},
			inside: func() []Sight {
				amb, eff := field("/proc/self/status", "CapAmb:"), field("/proc/self/status", "CapEff:")
				return []Sight{saw("ambient capabilities", amb == "0000000000002000" && eff == amb && os.Getuid() == 1000, "uid %d, ambient %s, effective %s", os.Getuid(), amb, eff)}
			},
		},
		{
			Name: "scheduler", Features: []string{"sched_setattr"},
			Edit: func(s *specs.Spec, _ Site) bool {
				s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
				return true
			},
			inside: func() []Sight {
				a, err := unix.SchedGetAttr(0, 0)
				if err != nil {
					return []Sight{saw("sched_setattr", false, "%v", err)}
				}
				return []Sight{saw("sched_setattr", a.Policy == unix.SCHED_BATCH && a.Nice == 5, "policy %d, nice %d", a.Policy, a.Nice)}
			},
		},
	}
}
