package tasksvc

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

// TestClear: outside a VM nothing of the containers outlives the daemon, neither
// of one that runs nor of one that was never started.
func TestClear(t *testing.T) {
	h := newHost(t)
	h.run("warm", testSpec("true"))
	fds, mounts := countFds(t), countMounts(t)
	for _, id := range []string{"c1", "c2"} {
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: id, Bundle: h.bundle(testSpec("sleep 1000"))})
		require.NoError(t, err)
	}
	_, err := h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	var paths []string
	for _, c := range h.containers {
		paths = append(paths, filepath.Join(h.cfg.CgroupMount, c.cgroup.Path()))
		require.DirExists(t, paths[len(paths)-1])
	}
	ctx, cancel := context.WithTimeout(h.ctx(), 2*time.Second)
	defer cancel()
	require.NoError(t, h.Stop(ctx))
	require.NoError(t, h.Clear(h.ctx()))
	require.Empty(t, h.containers)
	for _, p := range paths {
		require.NoDirExists(t, p)
	}
	h.spareNetwork()
	require.Eventually(t, func() bool { return countFds(t) <= fds }, 5*time.Second, 10*time.Millisecond)
	require.Equal(t, mounts, countMounts(t))
	require.Zero(t, h.cfg.Launcher.Children())
}

// TestClearWhileCreating: a Create that is under way when the daemon ends fails,
// and Clear returns when it has cleaned up after itself.
func TestClearWhileCreating(t *testing.T) {
	h := newHost(t)
	spec := testSpec("sleep 1000")
	gate := h.fifo("gate")
	spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo >" + gate + "; sleep 0.5"}}}}
	bundle := h.bundle(spec)
	failed := make(chan error, 1)
	go func() {
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: bundle})
		failed <- err
	}()
	_, err := os.ReadFile(gate) // the hook runs
	require.NoError(t, err)
	require.NoError(t, h.Stop(h.ctx()))
	short, cancel := context.WithTimeout(h.ctx(), time.Millisecond)
	defer cancel()
	require.ErrorIs(t, h.Clear(short), context.DeadlineExceeded)
	require.NoError(t, h.Clear(h.ctx()))
	require.Empty(t, h.containers)
	require.Zero(t, h.cfg.Launcher.Children())
	require.ErrorIs(t, <-failed, sys.ErrState)
	_, err = h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c2", Bundle: bundle})
	require.ErrorIs(t, err, sys.ErrState)
}
