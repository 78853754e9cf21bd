package tasksvc

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

func TestNeedsComplete(t *testing.T) {
	known := fileSystems([]byte("nodev\tproc\nnodev\ttmpfs\n\text4\nnodev\tcgroup2\n\terofs\nnodev\toverlay\n"))
	require.True(t, known["ext4"] && known["proc"] && !known["nodev"])
	plain := func() *specs.Spec {
		return &specs.Spec{
			Linux:  &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}}},
			Mounts: []specs.Mount{{Type: "proc"}, {Type: "cgroup"}, {Type: "bind"}, {Options: []string{"rbind"}}, {Type: "none", Options: []string{"bind"}}},
		}
	}
	root := []*types.Mount{{Type: "erofs"}, {Type: "format/mkdir/overlay"}}
	require.False(t, needsComplete(plain(), root, known))
	for what, change := range map[string]func(*specs.Spec){
		"the guest's network": func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:1] },
		"a device":            func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse"}} },
		"a network device":    func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth0": {}} },
		"a share":             func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Type: "9p"}) },
		"a loop device":       func(s *specs.Spec) { s.Mounts = append(s.Mounts, specs.Mount{Type: "ext4", Options: []string{"loop"}}) },
	} {
		s := plain()
		change(s)
		require.True(t, needsComplete(s, root, known), what)
	}
	require.True(t, needsComplete(plain(), []*types.Mount{{Type: "virtiofs"}}, known))
}

func TestAwaitGuest(t *testing.T) {
	settled, complete := make(chan struct{}), make(chan struct{})
	s := &Service{cfg: Config{Settled: settled, Complete: complete}}
	own := &specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace}}}}
	shared := &specs.Spec{Linux: &specs.Linux{}}
	waits := func(spec *specs.Spec) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		return s.awaitGuest(ctx, spec, nil) != nil
	}
	require.True(t, waits(own))
	close(settled)
	require.False(t, waits(own))
	require.True(t, waits(shared), "the network may come last")
	close(complete)
	require.False(t, waits(shared))
}
