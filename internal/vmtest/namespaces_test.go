package vmtest

import (
	"context"
	"fmt"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

// procName is how /proc/PID/ns calls a namespace.
var procName = map[specs.LinuxNamespaceType]string{
	specs.PIDNamespace: "pid", specs.NetworkNamespace: "net", specs.MountNamespace: "mnt", specs.IPCNamespace: "ipc",
	specs.UTSNamespace: "uts", specs.UserNamespace: "user", specs.CgroupNamespace: "cgroup", specs.TimeNamespace: "time",
}

// namespaces of a kind each, at a path or new.
func namespaces(path func(specs.LinuxNamespaceType) string, kinds ...specs.LinuxNamespaceType) (list []specs.LinuxNamespace) {
	for _, k := range kinds {
		list = append(list, specs.LinuxNamespace{Type: k, Path: path(k)})
	}
	return list
}

func fresh(specs.LinuxNamespaceType) string { return "" }

// of are the namespaces of a process of the guest.
func of(pid uint32) func(specs.LinuxNamespaceType) string {
	return func(k specs.LinuxNamespaceType) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, procName[k]) }
}

// guestNamespaces are PID 1's: what a privileged container shares with it, and
// its mount namespace.
func guestNamespaces(ctx context.Context, t *testing.T, g *Guest) map[string]uint64 {
	t.Helper()
	ns := g.Look(ctx, t, Privileged()).Namespaces
	r, err := g.Run(ctx, Privileged("/bin/readlink", "/proc/1/ns/mnt"))
	require.NoError(t, err)
	var mnt uint64
	_, err = fmt.Sscanf(r.Stdout, "mnt:[%d]", &mnt)
	require.NoError(t, err)
	require.NotEqual(t, mnt, ns["mnt"])
	ns["mnt"] = mnt
	return ns
}

func TestJoinNamespaces(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	spec := Spec("/bin/probe", "sleep")
	shared := []specs.LinuxNamespaceType{specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace, specs.TimeNamespace}
	spec.Linux.Namespaces = namespaces(fresh, append(shared, specs.MountNamespace)...)
	p := g.Running(ctx, t, spec)
	pid, err := p.PID(ctx)
	require.NoError(t, err)
	first := g.LookInside(ctx, t, p.ID(), Spec().Process)

	joined := Spec()
	joined.Hostname, joined.Process.Cwd = "", "/tmp"
	joined.Linux.Namespaces = append(namespaces(of(pid), shared...), specs.LinuxNamespace{Type: specs.MountNamespace})
	r := g.Look(ctx, t, joined)
	for _, k := range shared {
		require.Equal(t, first.Namespaces[procName[k]], r.Namespaces[procName[k]], k)
	}
	require.NotEqual(t, first.Namespaces["mnt"], r.Namespaces["mnt"])
	require.Equal(t, "guest-box", r.Hostname)
	require.Greater(t, r.PID, 1)
	require.Equal(t, "/bin/probe", r.Init, "pid 1 is the first container's")
	requireClean(t, r)
}

// Only some of them: what is not named is the guest's.
func TestFewNamespaces(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	guest := guestNamespaces(ctx, t, g)
	spec := Spec()
	spec.Hostname = ""
	spec.Linux.Namespaces = namespaces(fresh, specs.MountNamespace, specs.IPCNamespace)
	// Without a network namespace of its own a container may not mount sysfs
	// anew, nor without a cgroup namespace the hierarchy: both are binds.
	r := g.Look(ctx, t, spec)
	for kind, name := range procName {
		if kind == specs.MountNamespace || kind == specs.IPCNamespace {
			require.NotEqual(t, guest[name], r.Namespaces[name], name)
		} else {
			require.Equal(t, guest[name], r.Namespaces[name], name)
		}
	}
	require.Equal(t, "/vminit/default/", r.Cgroup.Path[:len("/vminit/default/")])
	requireClean(t, r)
}
