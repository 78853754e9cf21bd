package vmtest

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"vminit/internal/vmtest/probe/report"
)

// Look runs the probe as the process of a container and returns what it saw.
func (g *Guest) Look(ctx context.Context, t testing.TB, spec *specs.Spec) *report.Report {
	t.Helper()
	return g.LookAt(ctx, t, spec, RootMounts())
}

// LookAt is Look on a root file system of the caller's.
func (g *Guest) LookAt(ctx context.Context, t testing.TB, spec *specs.Spec, root []*types.Mount) *report.Report {
	t.Helper()
	spec.Process.Args = []string{"/bin/probe", "report"}
	r, err := g.RunAt(ctx, spec, root)
	require.NoError(t, err)
	return decodeReport(t, r)
}

// LookInside runs the probe as an exec in a running container.
func (g *Guest) LookInside(ctx context.Context, t testing.TB, id string, spec *specs.Process) *report.Report {
	t.Helper()
	spec.Args = []string{"/bin/probe", "report"}
	p, err := g.Exec(ctx, id, spec, false)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	r, err := p.Finish(ctx)
	require.NoError(t, err)
	return decodeReport(t, r)
}

func decodeReport(t testing.TB, r Result) *report.Report {
	t.Helper()
	require.Zero(t, r.Code, r.Stderr)
	seen := new(report.Report)
	dec := json.NewDecoder(strings.NewReader(r.Stdout))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(seen), r.Stdout)
	require.True(t, seen.Early, "the probe was linked without its own entry point")
	return seen
}

// Running creates and starts a container that the test's end takes away.
func (g *Guest) Running(ctx context.Context, t testing.TB, spec *specs.Spec) *Process {
	t.Helper()
	p, err := g.Create(ctx, "c"+NewID(), spec, false)
	require.NoError(t, err)
	t.Cleanup(func() { g.end(t, p) })
	require.NoError(t, p.Start(ctx))
	return p
}

// refused is the error of a Create that must fail. Without stdio: a stream that
// is opened and never claimed stays for two minutes.
func (g *Guest) refused(ctx context.Context, t testing.TB, r *taskv3.CreateTaskRequest, config []byte) error {
	t.Helper()
	r.ID = "c" + NewID()
	if r.Rootfs == nil {
		r.Rootfs = RootMounts()
	}
	require.NoError(t, g.MakeBundle(ctx, r, config))
	_, err := g.Task.Create(ctx, r)
	require.Error(t, err)
	return err
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	require.NoError(t, err)
	return data
}
