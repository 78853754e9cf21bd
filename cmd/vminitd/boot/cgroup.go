package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// ownCgroup is the daemon's leaf. Containers live elsewhere.
	ownCgroup = cgroupRoot + "/init.scope"
	// ownMemoryLow is how much memory of the daemon's reclaim leaves alone: a
	// few times what it uses under load.
	ownMemoryLow = "33554432"
	// ownCPUWeight lets the daemon answer while workloads fight for the CPU
	// (default 100).
	ownCPUWeight = "1000"
)

// SetupCgroups hands every controller the kernel has to the children of the
// root cgroup and moves the daemon into a leaf of its own, protected from
// reclaim and favoured for CPU time. cgroup-v2, Documentation/admin-guide.
func SetupCgroups() error {
	available, err := readString(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the cgroup controllers: %w", err)
	}
	errs := []error{enableControllers(cgroupRoot, strings.Fields(available))}
	errs = append(errs, enterOwnCgroup())
	return errors.Join(errs...)
}

// enableControllers enables all at once and, where that fails, one by one: the
// kernel refuses the whole list for a single controller it cannot enable.
func enableControllers(dir string, names []string) error {
	if len(names) == 0 {
		return fmt.Errorf("%s offers no controllers: boot with cgroup_no_v1=all", dir)
	}
	file := filepath.Join(dir, "cgroup.subtree_control")
	all := writeFile(file, "+"+strings.Join(names, " +"))
	if all == nil || len(names) == 1 {
		return all
	}
	var errs []error
	for _, name := range names {
		errs = append(errs, writeFile(file, "+"+name))
	}
	return errors.Join(errs...)
}

func enterOwnCgroup() error {
	if err := os.Mkdir(ownCgroup, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the daemon's cgroup: %w", err)
	}
	// The process first: protection is worth less than being accounted.
	errs := []error{writeFile(ownCgroup+"/cgroup.procs", strconv.Itoa(os.Getpid()))}
	for _, s := range []struct{ file, value string }{
		{"/memory.low", ownMemoryLow},
		{"/cpu.weight", ownCPUWeight},
	} {
		if err := writeFile(ownCgroup+s.file, s.value); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
