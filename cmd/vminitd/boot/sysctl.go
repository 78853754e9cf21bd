package boot

import (
	"errors"
	"fmt"
	"os"
)

// Sysctl is one kernel setting the guest should have. It is written only where
// the present value is one of When (nil: always), so that what the host or the
// kernel's configuration has decided stays.
type Sysctl struct {
	Path  string
	Value string
	When  []string
}

// Sysctls returns the settings that matter to a guest whose workloads are
// containers, for a guest with the given kernel parameters.
func Sysctls(cmdline []Param) []Sysctl {
	settings := []Sysctl{
		// The kernel's defaults leave the classic link and fifo attacks in
		// shared directories open; every distribution closes them.
		{Path: "/proc/sys/fs/protected_symlinks", Value: "1", When: []string{"0"}},
		{Path: "/proc/sys/fs/protected_hardlinks", Value: "1", When: []string{"0"}},
		{Path: "/proc/sys/fs/protected_fifos", Value: "1", When: []string{"0"}},
		{Path: "/proc/sys/fs/protected_regular", Value: "2", When: []string{"0", "1"}},
		// Kernel addresses and a bigger attack surface, of use to no container.
		{Path: "/proc/sys/kernel/dmesg_restrict", Value: "1", When: []string{"0"}},
		{Path: "/proc/sys/kernel/kptr_restrict", Value: "1", When: []string{"0"}},
		{Path: "/proc/sys/kernel/unprivileged_bpf_disabled", Value: "2", When: []string{"0"}},
		// Pids come round late, so that a stale one seldom names a stranger.
		{Path: "/proc/sys/kernel/pid_max", Value: "4194304", When: []string{"32768"}},
		// Memory that the host plugs in is for use: without this every host would
		// have to call OnlineMemory for every block of it.
		{Path: "/sys/devices/system/memory/auto_online_blocks", Value: "online", When: []string{"offline"}},
		// Large programs need it and no container can set it for itself.
		{Path: "/proc/sys/vm/max_map_count", Value: "1048576", When: []string{"65530"}},
	}
	if len(Values(cmdline, "panic")) == 0 {
		// A guest that hangs after a kernel panic is never given back.
		settings = append(settings, Sysctl{Path: "/proc/sys/kernel/panic", Value: "-1", When: []string{"0"}})
	}
	if _, err := os.Stat("/sbin/modprobe"); errors.Is(err, os.ErrNotExist) {
		// Spare the kernel from trying to run it for every unknown name.
		settings = append(settings, Sysctl{Path: "/proc/sys/kernel/modprobe", Value: "\n"})
	}
	return settings
}

// ExpediteRCU makes the kernel hurry every RCU grace period, as it does by itself
// until it runs PID 1. Moving a process between cgroups, detaching mounts and
// network namespaces wait for one: measured in a guest of one CPU, 0.07 ms
// instead of 12. The price is an interrupt to each CPU, which a guest of few
// CPUs does not notice. Documentation/admin-guide/kernel-parameters,
// rcupdate.rcu_expedited; a host that says rcu_normal there has its way.
func ExpediteRCU() error {
	return Sysctl{Path: "/sys/kernel/rcu_expedited", Value: "1", When: []string{"0"}}.apply()
}

// ApplySysctls writes the settings; one the kernel lacks is skipped.
func ApplySysctls(settings []Sysctl) error {
	var errs []error
	for _, s := range settings {
		errs = append(errs, s.apply())
	}
	return errors.Join(errs...)
}

func (s Sysctl) apply() error {
	current, err := readString(s.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", s.Path, err)
	}
	if !s.wanted(current) {
		return nil
	}
	return writeFile(s.Path, s.Value)
}

func (s Sysctl) wanted(current string) bool {
	if s.When == nil {
		return true
	}
	for _, v := range s.When {
		if v == current {
			return true
		}
	}
	return false
}
