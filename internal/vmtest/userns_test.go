package vmtest

import (
	"fmt"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"vminit/internal/vmtest/probe/report"
)

const shift, shifted = 100000, 65536

// inUserNamespace gives a spec a user namespace that shifts ids, and the root
// file system an upper layer that its root may write.
func inUserNamespace(spec *specs.Spec) []*types.Mount {
	spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: shift, Size: shifted}}
	spec.Linux.GIDMappings = spec.Linux.UIDMappings
	mounts := RootMounts()
	for i, o := range mounts[2].Options[:2] {
		mounts[2].Options[i] = fmt.Sprintf("%s:%d:%d", o, shift, shift)
	}
	return mounts
}

func TestNewNamespaces(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	spec := Spec()
	mounts := inUserNamespace(spec)
	spec.Linux.Namespaces = namespaces(fresh, specs.PIDNamespace, specs.NetworkNamespace, specs.MountNamespace, specs.IPCNamespace,
		specs.UTSNamespace, specs.UserNamespace, specs.CgroupNamespace, specs.TimeNamespace)
	guest := guestNamespaces(ctx, t, g)

	spec.Process.User = specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{9}}
	r := g.LookAt(ctx, t, spec, mounts)
	for _, name := range procName {
		require.NotZero(t, r.Namespaces[name], name)
		require.NotEqual(t, guest[name], r.Namespaces[name], name)
	}
	requireClean(t, r)
	require.Equal(t, "         0     100000      65536", r.UIDMap)
	require.Equal(t, r.UIDMap, r.GIDMap)
	require.Equal(t, report.IDs{Real: 7, Effective: 7, Saved: 7, FS: 7}, r.UIDs)
	require.Equal(t, report.IDs{Real: 8, Effective: 8, Saved: 8, FS: 8}, r.GIDs)
	require.Equal(t, []int{9}, r.Groups)
	require.Equal(t, "0::/", r.Cgroup.Raw)
	require.Equal(t, "guest-box", r.Hostname)
	d, ok := r.Device("/dev/null")
	require.True(t, ok)
	require.Equal(t, [2]uint32{1, 3}, [2]uint32{d.Major, d.Minor})
	for _, m := range spec.Mounts {
		_, ok := r.Mount(m.Destination)
		require.True(t, ok, m.Destination)
	}

	// Its root can write its own root file system and is nobody outside.
	spec.Process.User = specs.User{}
	spec.Process.Args = []string{"/bin/sh", "-c", "echo x > /new && chown 3:4 /new && stat -c %u:%g /new; cat /proc/self/uid_map; mount -t tmpfs x /mnt || echo refused"}
	p, err := g.CreateAt(ctx, "c"+NewID(), spec, mounts)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	res, err := p.Finish(ctx)
	require.NoError(t, err)
	require.Equal(t, "3:4\n         0     100000      65536\nrefused\n", res.Stdout, res.Stderr)
}

// A container in the user namespace of another, as a pod's are.
func TestJoinUserNamespace(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	all := []specs.LinuxNamespaceType{specs.UserNamespace, specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace}
	spec := Spec("/bin/probe", "sleep")
	mounts := inUserNamespace(spec)
	spec.Linux.Namespaces = namespaces(fresh, append(all, specs.MountNamespace)...)
	p, err := g.CreateAt(ctx, "c"+NewID(), spec, mounts)
	require.NoError(t, err)
	t.Cleanup(func() { g.end(t, p) })
	require.NoError(t, p.Start(ctx))
	pid, err := p.PID(ctx)
	require.NoError(t, err)

	first := g.LookInside(ctx, t, p.ID(), Spec().Process)
	require.Equal(t, "         0     100000      65536", first.UIDMap, "an exec is in the user namespace, too")

	joined := Spec()
	joined.Hostname = ""
	joined.Linux.Namespaces = append(namespaces(of(pid), all...), specs.LinuxNamespace{Type: specs.MountNamespace})
	joined.Linux.UIDMappings, joined.Linux.GIDMappings = spec.Linux.UIDMappings, spec.Linux.GIDMappings
	r := g.LookAt(ctx, t, joined, mounts)
	for _, k := range all {
		require.Equal(t, first.Namespaces[procName[k]], r.Namespaces[procName[k]], k)
	}
	require.Equal(t, first.UIDMap, r.UIDMap)
	requireClean(t, r)
}
