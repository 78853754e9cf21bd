package tasksvc

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
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
