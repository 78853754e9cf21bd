package cgroup2

import (
	"context"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestPurge: what another owner of the tree has left, processes included, goes.
func TestPurge(t *testing.T) {
	tree := newTree(t)
	require.NoError(t, tree.Purge(t.Context()))
	c, err := tree.Create("a/b/c")
	require.NoError(t, err)
	_, err = tree.Create("a/d")
	require.NoError(t, err)
	sleeper := exec.Command("sleep", "100")
	require.NoError(t, sleeper.Start())
	require.NoError(t, c.Add(sleeper.Process.Pid))
	gone := make(chan error, 1)
	go func() { gone <- sleeper.Wait() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, tree.Purge(ctx))
	require.ErrorContains(t, <-gone, unix.SIGKILL.String())
}
