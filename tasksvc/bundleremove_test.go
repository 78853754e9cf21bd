package tasksvc

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

func TestBundleRemove(t *testing.T) {
	dir := t.TempDir()
	b := NewBundles(filepath.Join(dir, "bundles"))
	resp, err := createBundle(b, "c1", map[string]string{"config.json": "{}"})
	require.NoError(t, err)

	// A container without mounts of its own writes into rootfs what it likes.
	keep := filepath.Join(dir, "keep")
	require.NoError(t, os.Mkdir(keep, 0o755))
	require.NoError(t, os.WriteFile(keep+"/file", nil, 0o644))
	rootfs := filepath.Join(resp.Bundle, "rootfs")
	require.NoError(t, os.Symlink(keep, rootfs+"/link"))
	deep := rootfs + strings.Repeat("/d", 200)
	require.NoError(t, os.MkdirAll(deep, 0o755))
	require.NoError(t, unix.Mkfifo(deep+"/fifo", 0o644))
	if os.Getuid() == 0 { // as the daemon is
		require.NoError(t, os.Mkdir(rootfs+"/locked", 0))
	}
	for i := range 600 {
		require.NoError(t, os.WriteFile(fmt.Sprintf("%s/f%d", rootfs, i), nil, 0))
	}

	other := filepath.Join(b.root, "host")
	require.NoError(t, os.Mkdir(other, 0o755))
	require.NoError(t, b.Remove(other), "not ours")
	require.NoError(t, b.Remove(filepath.Join(dir, "c1")), "of that name elsewhere")
	require.DirExists(t, resp.Bundle)

	require.NoError(t, b.Remove(resp.Bundle))
	require.NoDirExists(t, resp.Bundle)
	require.DirExists(t, other)
	require.FileExists(t, keep+"/file")
	require.NoError(t, os.Mkdir(resp.Bundle, 0o755))
	require.NoError(t, b.Remove(resp.Bundle), "not ours any more")
	require.DirExists(t, resp.Bundle)
}

// What a host has mounted into a bundle is not emptied with it.
func TestBundleRemoveMounted(t *testing.T) {
	requireRoot(t)
	b := NewBundles(t.TempDir())
	disk := t.TempDir()
	require.NoError(t, os.WriteFile(disk+"/precious", nil, 0o644))
	for _, target := range []string{"rootfs", "rootfs/sub", "config.json"} {
		resp, err := createBundle(b, "c1", map[string]string{"config.json": "{}"})
		require.NoError(t, err)
		at, source := filepath.Join(resp.Bundle, target), disk
		if target == "config.json" {
			source = disk + "/precious"
		} else {
			require.NoError(t, os.MkdirAll(at, 0o755))
		}
		require.NoError(t, unix.Mount(source, at, "", unix.MS_BIND, ""))
		err = b.Remove(resp.Bundle)
		require.ErrorIs(t, err, sys.ErrState, target)
		require.ErrorContains(t, err, "something is mounted on")
		require.FileExists(t, disk+"/precious")
		require.NoError(t, unix.Unmount(at, 0))
		require.NoError(t, b.Remove(resp.Bundle))
		require.NoDirExists(t, resp.Bundle)
	}
}

// A bundle of ours goes with its container, one of the host's stays.
func TestBundleOfContainer(t *testing.T) {
	h := newHost(t)
	h.Service.cfg.Bundles = NewBundles(t.TempDir())
	spec, err := os.ReadFile(filepath.Join(h.bundle(testSpec("true")), "config.json"))
	require.NoError(t, err)
	resp, err := createBundle(h.Service.cfg.Bundles, "c1", map[string]string{"config.json": string(spec)})
	require.NoError(t, err)
	host := h.bundle(testSpec("true"))
	require.NoError(t, os.CopyFS(resp.Bundle+"/rootfs", os.DirFS(host+"/rootfs")))
	for _, bundle := range []string{resp.Bundle, host} {
		for _, id := range []string{"a", "b"} { // two that share it
			_, err = h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: id, Bundle: bundle})
			require.NoError(t, err)
		}
		h.delete("a")
		require.FileExists(t, bundle+"/config.json", "another container uses it")
		h.delete("b")
	}
	require.NoDirExists(t, resp.Bundle)
	require.FileExists(t, host+"/config.json")
}
