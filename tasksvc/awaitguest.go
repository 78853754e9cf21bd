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
	wait := func(ready <-chan struct{}) error {
		select {
		case <-ready:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("wait for the guest to be set up: %w", ctx.Err())
		}
	}
	if err := wait(s.cfg.Settled); err != nil || s.cfg.Complete == nil {
		return err
	}
	select {
	case <-s.cfg.Complete:
		return nil
	default:
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return wait(s.cfg.Complete)
	}
	if !needsComplete(spec, root, fileSystems(known)) {
		return nil
	}
	return wait(s.cfg.Complete)
}

// needsComplete reports whether a container asks for what may come last: the
// guest's network, devices, or a file system that the kernel does not know yet.
func needsComplete(spec *specs.Spec, root []*types.Mount, known map[string]bool) bool {
	ownNetwork := slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	if !ownNetwork || len(spec.Linux.NetDevices) > 0 || len(spec.Linux.Devices) > 0 {
		return true
	}
	late := func(fsType string, options []string) bool {
		fsType = fsType[strings.LastIndexByte(fsType, '/')+1:] // format/mkdir/TYPE
		bind := fsType == "" || fsType == "none" || fsType == "bind" || fsType == "rbind" ||
			slices.Contains(options, "bind") || slices.Contains(options, "rbind")
		return !bind && fsType != "cgroup" && !known[fsType] || slices.Contains(options, "loop")
	}
	return slices.ContainsFunc(root, func(m *types.Mount) bool { return late(m.Type, m.Options) }) ||
		slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return late(m.Type, m.Options) })
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
