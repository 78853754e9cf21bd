package vmtest

import (
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/vmtest/probe/report"
	"vminit/internal/vmtest/testroot"
)

// An exec is in every namespace and the cgroup of its container, and otherwise
// what its own process spec says.
func TestExecJoins(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	spec := Spec("/bin/probe", "sleep")
	spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	spec.Process.OOMScoreAdj = ptr(10)
	c := g.Running(ctx, t, spec)

	same := *spec.Process
	same.Env = append(same.Env, "FROM=exec")
	first := g.LookInside(ctx, t, c.ID(), &same)
	requireClean(t, first)
	require.Equal(t, "/bin/probe", first.Init)
	require.Greater(t, first.PID, 1)
	require.Zero(t, first.PPID, "its parent is outside")
	require.Equal(t, "guest-box", first.Hostname)
	require.Equal(t, "0::/", first.Cgroup.Raw)
	require.Contains(t, first.Keyring, ";_ses.c")

	own := &specs.Process{
		Cwd: "/tmp", Env: []string{"A=b"}, User: specs.User{UID: testroot.User, GID: testroot.Extra, AdditionalGids: []uint32{5}, Umask: ptr(uint32(0o007))},
		Capabilities:    &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}},
		Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 50, Hard: 60}},
		NoNewPrivileges: true, OOMScoreAdj: ptr(500),
	}
	second := g.LookInside(ctx, t, c.ID(), own)
	requireClean(t, second)
	require.Equal(t, "/tmp", second.Cwd)
	require.Equal(t, []string{"A=b", "HOME=/home"}, second.Env)
	require.Equal(t, report.IDs{Real: 1000, Effective: 1000, Saved: 1000, FS: 1000}, second.UIDs)
	require.Equal(t, report.IDs{Real: 1001, Effective: 1001, Saved: 1001, FS: 1001}, second.GIDs)
	require.Equal(t, []int{5}, second.Groups)
	require.Equal(t, 0o007, second.Umask)
	require.Equal(t, 500, second.OOMScoreAdj)
	require.True(t, second.NoNewPrivs)
	require.Equal(t, []string{"CAP_KILL"}, second.Capabilities.Bounding)
	require.Empty(t, second.Capabilities.Permitted)
	require.Equal(t, report.Rlimit{Soft: 50, Hard: 60}, second.Rlimits["NOFILE"])

	require.Equal(t, first.Namespaces, second.Namespaces)
	require.Equal(t, first.Mounts, second.Mounts)
	guest := guestNamespaces(ctx, t, g)
	for kind, name := range procName {
		if kind != specs.UserNamespace {
			require.NotEqual(t, guest[name], first.Namespaces[name], name)
		}
	}
}

// What cannot be executed is said by name, and the container goes on.
func TestExecErrors(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	c := g.Running(ctx, t, Spec("/bin/probe", "sleep"))
	running := g.Baseline(ctx, t)

	p, err := g.Exec(ctx, c.ID(), Spec("nosuchcmd").Process, false)
	require.NoError(t, err)
	require.ErrorContains(t, p.Start(ctx), `exec "nosuchcmd": executable file not found in $PATH`)
	require.NoError(t, p.Delete(ctx))
	p.Abandon()

	refused := func(id, exec string, spec *specs.Process, want codes.Code) {
		t.Helper()
		_, err := g.Task.Exec(ctx, &taskv3.ExecProcessRequest{ID: id, ExecID: exec, Spec: &anypb.Any{Value: marshal(t, spec)}})
		require.Equal(t, want, status.Code(err), err)
	}
	refused(c.ID(), "e", &specs.Process{Cwd: "/"}, codes.InvalidArgument)
	refused(c.ID(), "e", &specs.Process{Cwd: "tmp", Args: []string{"true"}}, codes.InvalidArgument)
	refused(c.ID(), "../e", Spec("true").Process, codes.InvalidArgument)
	refused("nosuchcontainer", "e", Spec("true").Process, codes.NotFound)
	bad := Spec("true").Process
	bad.Cwd = "/nosuchdirectory"
	p, err = g.Exec(ctx, c.ID(), bad, false)
	require.NoError(t, err)
	require.ErrorContains(t, p.Start(ctx), "/nosuchdirectory")
	require.NoError(t, p.Delete(ctx))
	p.Abandon()

	r := g.LookInside(ctx, t, c.ID(), Spec().Process)
	require.Equal(t, "/bin/probe", r.Init)
	g.Restored(ctx, t, running)
	g.end(t, c)
	refused(c.ID(), "e", Spec("true").Process, codes.NotFound)
	g.Restored(ctx, t, base)
}
