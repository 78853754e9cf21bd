package cgroup2

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// again opens the tree a second time, as another process would.
func again(t *testing.T, tree *Tree) *Tree {
	t.Helper()
	other, err := OpenTree(mountpoint(t), tree.path[1:])
	require.NoError(t, err)
	t.Cleanup(func() { _ = other.Close() })
	return other
}

// TestClaim: a tree has one owner at a time, and the next one when that has gone.
func TestClaim(t *testing.T) {
	tree := newTree(t)
	first, second := again(t, tree), again(t, tree)
	require.NoError(t, first.Claim(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, second.Claim(ctx), sys.ErrState)
	// Purging needs the file of the claim, too.
	require.NoError(t, first.Purge(t.Context()))
	require.ErrorIs(t, second.Claim(ctx), sys.ErrState)

	time.AfterFunc(20*time.Millisecond, func() { first.Close() })
	require.NoError(t, second.Claim(timeout(t, 20*time.Second)))
}

// TestClaimRemoved: what the last owner has removed is not to be had.
func TestClaimRemoved(t *testing.T) {
	tree := newTree(t)
	owner, waiting := again(t, tree), again(t, tree)
	require.NoError(t, owner.Claim(t.Context()))
	path := filepath.Join(mountpoint(t), tree.path)
	go func() {
		time.Sleep(20 * time.Millisecond)
		_ = unix.Rmdir(path)
		owner.Close()
	}()
	require.ErrorIs(t, waiting.Claim(timeout(t, 20*time.Second)), os.ErrNotExist)
	next := again(t, tree) // newTree removes it
	require.NoError(t, next.Claim(t.Context()))
	require.ErrorIs(t, waiting.Claim(t.Context()), os.ErrNotExist, "removed before it is locked")
}
