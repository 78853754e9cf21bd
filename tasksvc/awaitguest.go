package tasksvc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// awaitGuest waits until the guest's boot has got far enough for a container. One
// with no more than a root file system and namespaces of its own need not wait
// for the network or for the last kernel modules.
func (s *Service) awaitGuest(ctx context.Context, spec *specs.Spec, root []*types.Mount) error {
	return awaitBoot(ctx, s.cfg.Settled, s.cfg.Complete, func(known map[string]bool) bool { return needsComplete(spec, root, known) })
}

// awaitBoot waits for settled, and for complete too if the caller's needs, by the
// file systems that the kernel knows so far, are not met without it.
func awaitBoot(ctx context.Context, settled, complete <-chan struct{}, needs func(known map[string]bool) bool) error {
	wait := func(ready <-chan struct{}) error {
		select {
		case <-ready:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for the guest to be set up: %w", ctx.Err())
		}
	}
	if err := wait(settled); err != nil || complete == nil {
		return err
	}
	select {
	case <-complete:
		return nil
	default:
	}
	if known, err := os.ReadFile("/proc/filesystems"); err == nil && !needs(fileSystems(known)) {
		return nil
	}
	return wait(complete)
}

// needsComplete reports whether a container asks for what may come last: the
// guest's network, devices, or a file system that the kernel does not know yet.
func needsComplete(spec *specs.Spec, root []*types.Mount, known map[string]bool) bool {
	ownNetwork := slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	if !ownNetwork || len(spec.Linux.NetDevices) > 0 || len(spec.Linux.Devices) > 0 {
		return true
	}
	return slices.ContainsFunc(root, func(m *types.Mount) bool { return lateMount(m.Type, m.Options, known) }) ||
		slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return lateMount(m.Type, m.Options, known) })
}

// lateMount reports whether a mount needs a module that may not be there yet.
func lateMount(fsType string, options []string, known map[string]bool) bool {
	fsType = fsType[strings.LastIndexByte(fsType, '/')+1:] // format/mkdir/TYPE
	bind := fsType == "" || fsType == "none" || fsType == "bind" || fsType == "rbind" ||
		slices.Contains(options, "bind") || slices.Contains(options, "rbind")
	return !bind && fsType != "cgroup" && !known[fsType] || slices.Contains(options, "loop")
}

// fileSystems reads /proc/filesystems, proc_filesystems(5): "nodev" or nothing,
// a tab, a name.
func fileSystems(b []byte) map[string]bool {
	known := map[string]bool{}
	for line := range bytes.Lines(b) {
		if f := bytes.Fields(line); len(f) > 0 {
			known[string(f[len(f)-1])] = true
		}
	}
	return known
}
