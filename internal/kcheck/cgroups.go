package kcheck

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

func cgroupFeatures() []Feature {
	return []Feature{
		{Name: "cgroup2", Since: "4.5", Need: Required, Loses: "no limits, no counters, no kill", probe: func(e *env) error { return e.cgroupErr }, note: controllers},
		{Name: "cgroup.kill", Since: "5.14", Need: Required, Loses: "containers that fork without end cannot be killed", probe: killCgroup},
		{Name: "cgroup.freeze", Since: "5.2", Need: Used, Loses: "no pause", probe: freezeCgroup},
		{Name: "cgroup.pressure", Since: "6.1", Need: Optional, Loses: "pressure is counted for every cgroup", probe: hasFile("", "cgroup.pressure")},
		{Name: "cgroup2 nsdelegate", Since: "4.13", Need: Used, Loses: "containers could raise their own limits", probe: cgroupKnows("nsdelegate"), note: cgroupMounted("nsdelegate")},
		{Name: "cgroup2 memory_recursiveprot", Since: "5.7", Need: Used, Loses: "protection of the daemon's memory ends at its cgroup", probe: cgroupKnows("memory_recursiveprot"), note: cgroupMounted("memory_recursiveprot")},
		{Name: "cgroup2 memory_hugetlb_accounting", Since: "6.6", Need: Optional, Loses: "huge pages do not count as memory", probe: cgroupKnows("memory_hugetlb_accounting")},
		{Name: "memory.max", Since: "4.5", Need: Used, Loses: "resources.memory is refused", probe: hasFile("memory", "memory.max")},
		{Name: "memory.oom.group", Since: "4.19", Need: Used, Loses: "out of memory kills one process of a container, not all", probe: hasFile("memory", "memory.oom.group")},
		{Name: "memory.reclaim", Since: "5.19", Need: Optional, Loses: "a host cannot take memory back from a container", probe: hasFile("memory", "memory.reclaim")},
		{Name: "memory.peak", Since: "5.19", Need: Optional, Loses: "stats have no highest usage", probe: hasFile("memory", "memory.peak")},
		{Name: "memory.zswap.max", Since: "5.19", Need: Optional, Loses: "compressed swap has no limit", probe: hasFile("memory", "memory.zswap.max")},
		{Name: "memory.swap.peak", Since: "6.5", Need: Optional, Loses: "stats have no highest swap usage", probe: hasFile("memory", "memory.swap.peak")},
		{Name: "cpu.max", Since: "4.15", Need: Used, Loses: "cpu quotas are refused", probe: hasFile("cpu", "cpu.max")},
		{Name: "cpu.max.burst", Since: "5.14", Need: Used, Loses: "resources.cpu.burst is refused", probe: hasFile("cpu", "cpu.max.burst")},
		{Name: "cpu.idle", Since: "5.15", Need: Used, Loses: "resources.cpu.idle is refused", probe: hasFile("cpu", "cpu.idle")},
		{Name: "pids.max", Since: "4.5", Need: Used, Loses: "fork bombs are not contained", probe: hasFile("pids", "pids.max")},
		{Name: "pids.peak", Since: "6.1", Need: Optional, Loses: "stats have no highest number of processes", probe: hasFile("pids", "pids.peak")},
		{Name: "io.max", Since: "4.5", Need: Used, Loses: "limits of block devices are refused", probe: hasFile("io", "io.max")},
		{Name: "cpuset.cpus", Since: "5.0", Need: Used, Loses: "resources.cpu.cpus is refused", probe: hasFile("cpuset", "cpuset.cpus")},
		{Name: "hugetlb controller", Since: "5.6", Need: Used, Loses: "hugepageLimits are refused", probe: hasFile("hugetlb", "hugetlb.2MB.max")},
		{Name: "misc controller", Since: "5.13", Need: Optional, Loses: "resources of confidential VMs have no limit", probe: hasFile("misc", "misc.max")},
		{Name: "PSI", Since: "4.20", Need: Used, Loses: "stats have no pressure", probe: func(*env) error {
			_, err := os.ReadFile("/proc/pressure/memory")
			if errors.Is(err, unix.EOPNOTSUPP) {
				return notHere(unix.EOPNOTSUPP, "switched off: boot with psi=1")
			}
			return plain(err)
		}},
		{Name: "PSI of a cgroup", Since: "4.20", Need: Used, Loses: "stats have no pressure", probe: func(e *env) error {
			if e.cgroupErr != nil {
				return e.cgroupErr
			}
			_, err := os.ReadFile(filepath.Join(e.cgroup, "cpu.pressure"))
			if errors.Is(err, unix.EOPNOTSUPP) {
				return notHere(unix.EOPNOTSUPP, "switched off: boot with psi=1")
			}
			return plain(err)
		}},
	}
}

// plain takes an errno out of what os wraps around it: the path of our own
// cgroup says nothing.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// hasFile looks for a file of a controller ("": of all cgroups) in our cgroup.
func hasFile(controller, file string) func(*env) error {
	return func(e *env) error {
		if e.cgroupErr != nil {
			return e.cgroupErr
		}
		_, err := os.Stat(filepath.Join(e.cgroup, file))
		if err == nil || controller == "" || knows(filepath.Join(e.cgroup, "cgroup.controllers"), controller) {
			return plain(err)
		}
		name := controller
		if name == "io" {
			name = "blkio" // as cgroup v1 calls it
		}
		if knows("/proc/cgroups", name) || knows(filepath.Join(filepath.Dir(e.cgroup), "cgroup.controllers"), controller) {
			return notHere(unix.ENOENT, "the %s controller is not enabled in cgroup2", controller)
		}
		return fmt.Errorf("no %s controller (%w)", controller, unix.ENOENT)
	}
}

func controllers(e *env) string {
	b, _ := os.ReadFile(filepath.Join(e.cgroup, "cgroup.controllers"))
	if list := strings.TrimSpace(string(b)); list != "" {
		return "controllers: " + list
	}
	return "no controllers"
}

// cgroupKnows asks for an option of cgroup2 mounts (Linux 4.15 lists them).
func cgroupKnows(option string) func(*env) error {
	return func(*env) error {
		if _, err := os.Stat("/sys/kernel/cgroup/features"); err != nil {
			return notHere(unix.ENOENT, "no /sys/kernel/cgroup/features")
		}
		if !knows("/sys/kernel/cgroup/features", option) {
			return unix.EINVAL // what mount(2) would say
		}
		return nil
	}
}

// cgroupMounted tells whether cgroup2 is mounted with the option.
func cgroupMounted(option string) func(*env) string {
	return func(*env) string {
		b, _ := os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(b)) {
			_, after, _ := strings.Cut(strings.TrimSpace(line), " - cgroup2 ")
			for o := range strings.SplitSeq(after[strings.LastIndexByte(after, ' ')+1:], ",") {
				if o == option {
					return ""
				}
			}
		}
		return "cgroup2 is not mounted with it"
	}
}

// inCgroup runs a child in a cgroup that waits at a gate while look runs.
func (e *env) inCgroup(path string, look func(*nsexec.Child) error) error {
	if e.cgroupErr != nil {
		return e.cgroupErr
	}
	dir, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return e.run(nsexec.Launch{Cgroup: dir, PIDNS: -1}, func(p *nsexec.Program) { p.Gate("wait") }, func(c *nsexec.Child, _ *nsexec.Registers) error { return look(c) })
}

// killCgroup kills a child by its cgroup: one of its own, because newer kernels
// (6.18 at least) kill whatever CLONE_INTO_CGROUP puts into a cgroup that was
// killed before.
func killCgroup(e *env) error {
	if e.cgroupErr != nil {
		return e.cgroupErr
	}
	dir := filepath.Join(e.cgroup, "kill")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return plain(err)
	}
	defer os.Remove(dir)
	killed := errors.New("killed")
	err := e.inCgroup(dir, func(c *nsexec.Child) error {
		if err := write(dir, "cgroup.kill", "1"); err != nil {
			return err
		}
		select {
		case <-c.Done():
			return killed
		case <-time.After(patience):
			return errors.New("it did not kill")
		}
	})
	if errors.Is(err, killed) {
		return nil
	}
	return err
}

// freezeCgroup freezes a child and thaws it again.
func freezeCgroup(e *env) error {
	return e.inCgroup(e.cgroup, func(*nsexec.Child) error {
		if err := write(e.cgroup, "cgroup.freeze", "1"); err != nil {
			return err
		}
		return write(e.cgroup, "cgroup.freeze", "0")
	})
}

// write writes to an existing file of a cgroup.
func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return plain(err)
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return plain(err)
}
