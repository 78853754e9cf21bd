package kcheck

import (
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// cgroupExercises set limits and read them inside.
func cgroupExercises() []Exercise {
	// reads makes an exercise of one file; want "" is anything that can be read.
	reads := func(feature, file, want string, set func(*specs.LinuxResources)) Exercise {
		return Exercise{
			Name: feature, Features: []string{feature},
			Edit: func(s *specs.Spec, _ Site) bool { set(s.Linux.Resources); return true },
			inside: func() []Sight {
				b, err := os.ReadFile("/sys/fs/cgroup/" + file)
				got := text("/sys/fs/cgroup/" + file)
				if want == "" {
					return []Sight{saw(feature, err == nil && len(b) > 0, "%s: %s", file, outcome(err))}
				}
				return []Sight{saw(feature, got == want, "%s is %q", file, got)}
			},
		}
	}
	cpu := func(set func(*specs.LinuxCPU)) func(*specs.LinuxResources) {
		return func(r *specs.LinuxResources) {
			if r.CPU == nil {
				r.CPU = new(specs.LinuxCPU)
			}
			set(r.CPU)
		}
	}
	half := func(c *specs.LinuxCPU) { c.Quota, c.Period = ref(int64(50000)), ref(uint64(100000)) }
	return []Exercise{
		reads("memory.max", "memory.max", "67108864", func(r *specs.LinuxResources) { r.Memory = &specs.LinuxMemory{Limit: ref(int64(64 << 20))} }),
		reads("memory.oom.group", "memory.oom.group", "1", func(r *specs.LinuxResources) { r.Unified = map[string]string{"memory.oom.group": "1"} }),
		reads("memory.peak", "memory.peak", "", func(*specs.LinuxResources) {}),
		reads("cpu.max", "cpu.max", "50000 100000", cpu(half)),
		reads("cpu.max.burst", "cpu.max.burst", "20000", cpu(func(c *specs.LinuxCPU) { half(c); c.Burst = ref(uint64(20000)) })),
		reads("cpu.idle", "cpu.idle", "1", cpu(func(c *specs.LinuxCPU) { c.Idle = ref(int64(1)) })),
		reads("pids.max", "pids.max", "77", func(r *specs.LinuxResources) { r.Pids = &specs.LinuxPids{Limit: ref(int64(77))} }),
		reads("cpuset.cpus", "cpuset.cpus", "0", cpu(func(c *specs.LinuxCPU) { c.Cpus = "0" })),
		reads("hugetlb controller", "hugetlb.2MB.max", "2097152", func(r *specs.LinuxResources) {
			r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 2 << 20}}
		}),
		reads("PSI of a cgroup", "cpu.pressure", "", func(*specs.LinuxResources) {}),
		{
			Name: "device filter", Features: []string{"BPF_PROG_TYPE_CGROUP_DEVICE", "BPF_F_ALLOW_MULTI"},
			inside: func() []Sight {
				const node = "/dev/vminit-check"
				err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 11))) // kmsg; making nodes is allowed by default
				if err == nil {
					err = fd(unix.Open(node, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0))
				}
				null := fd(unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0))
				return []Sight{
					saw("BPF_PROG_TYPE_CGROUP_DEVICE", err == unix.EPERM && null == nil, "kmsg: %s; null: %s", outcome(err), outcome(null)),
					saw("BPF_F_ALLOW_MULTI", err == unix.EPERM && null == nil, "kmsg: %s; null: %s", outcome(err), outcome(null)),
				}
			},
		},
	}
}

func ref[T any](v T) *T { return &v }
