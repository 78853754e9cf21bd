package tasksvc

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	bundleapi "vminit/api/services/bundle/v1"
	"vminit/internal/sys"
)

func createBundle(b *Bundles, id string, files map[string]string) (*bundleapi.CreateResponse, error) {
	req := &bundleapi.CreateRequest{Id: id, Files: map[string][]byte{}}
	for name, data := range files {
		req.Files[name] = []byte(data)
	}
	return b.Create(context.Background(), req)
}

func TestBundleCreate(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077)) // modes must not depend on it
	root := filepath.Join(t.TempDir(), "run", "bundles")
	b := NewBundles(root)
	resp, err := createBundle(b, "c1", map[string]string{"config.json": "{}", "resolv.conf": "x"})
	require.NoError(t, err)
	require.Equal(t, filepath.Join(root, "c1"), resp.Bundle)

	for name, mode := range map[string]fs.FileMode{
		"":            fs.ModeDir | 0o750,
		"rootfs":      fs.ModeDir | 0o755,
		"config.json": 0o600,
		"resolv.conf": 0o600,
	} {
		info, err := os.Lstat(filepath.Join(resp.Bundle, name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), name)
	}
	data, err := os.ReadFile(filepath.Join(resp.Bundle, "config.json"))
	require.NoError(t, err)
	require.Equal(t, "{}", string(data))

	_, err = createBundle(b, "c1", map[string]string{"other": ""})
	require.ErrorIs(t, err, sys.ErrExists)
	require.FileExists(t, filepath.Join(resp.Bundle, "config.json"), "the first one is untouched")
	require.NoFileExists(t, filepath.Join(resp.Bundle, "other"))
}

func TestBundleRefused(t *testing.T) {
	for _, id := range []string{"", ".", "..", "../x", "a/b", `a\b`, "a\x00", "/etc"} {
		root := t.TempDir()
		_, err := createBundle(NewBundles(root), id, nil)
		require.ErrorIs(t, err, sys.ErrInvalid, "%q", id)
		requireEmptyDir(t, root)
	}
	for _, name := range []string{"", ".", "..", "../x", "/etc/passwd", "a/b", `a\b`, "a\x00", "rootfs", "mounts"} {
		root := t.TempDir()
		_, err := createBundle(NewBundles(root), "c1", map[string]string{"config.json": "{}", name: "x"})
		require.ErrorIs(t, err, sys.ErrInvalid, "%q", name)
		requireEmptyDir(t, root)
	}
	root := t.TempDir()
	_, err := createBundle(NewBundles(root), "c1", map[string]string{"big": strings.Repeat("x", maxBundleFileSize+1)})
	require.ErrorIs(t, err, sys.ErrInvalid)
	many := map[string]string{}
	for i := range maxBundleFiles + 1 {
		many[fmt.Sprint(i)] = ""
	}
	_, err = createBundle(NewBundles(root), "c1", many)
	require.ErrorIs(t, err, sys.ErrInvalid)
	requireEmptyDir(t, root)
}

// TestBundleFailureLeavesNothing makes a write fail half-way (RLIMIT_FSIZE
// answers EFBIG, as a full disk would ENOSPC).
func TestBundleFailureLeavesNothing(t *testing.T) {
	root := t.TempDir()
	var err error
	withFileSizeLimit(t, 1000, func() {
		_, err = createBundle(NewBundles(root), "c1", map[string]string{"a": "small", "b": strings.Repeat("x", 2000)})
	})
	require.ErrorIs(t, err, syscall.EFBIG)
	requireEmptyDir(t, root)
}

func TestBundleRace(t *testing.T) {
	b := NewBundles(t.TempDir())
	var wg sync.WaitGroup
	var made atomic.Int32
	for range 16 {
		wg.Go(func() {
			if _, err := createBundle(b, "same", map[string]string{"config.json": "{}"}); err == nil {
				made.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, made.Load())
	require.FileExists(t, filepath.Join(b.root, "same", "config.json"))
}

// FuzzBundleCreate: whatever the names, nothing appears outside the bundle.
func FuzzBundleCreate(f *testing.F) {
	f.Add("c1", "config.json")
	f.Add("..", "x")
	f.Add("a", "../../x")
	f.Add("a", "rootfs")
	f.Fuzz(func(t *testing.T, id, name string) {
		top := t.TempDir()
		root := filepath.Join(top, "bundles")
		resp, err := createBundle(NewBundles(root), id, map[string]string{name: "data"})
		if err == nil {
			if filepath.Dir(resp.Bundle) != root {
				t.Fatalf("bundle %q", resp.Bundle)
			}
			if data, err := os.ReadFile(filepath.Join(resp.Bundle, name)); err != nil || string(data) != "data" {
				t.Fatalf("%q: %q %v", name, data, err)
			}
		} else if left, _ := os.ReadDir(root); len(left) != 0 {
			t.Fatalf("left behind: %v", left)
		}
		entries, err := os.ReadDir(top)
		if err != nil || len(entries) > 1 {
			t.Fatalf("outside the bundle directory: %v %v", entries, err)
		}
	})
}

func requireEmptyDir(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

// withFileSizeLimit runs f while files cannot grow beyond limit bytes.
func withFileSizeLimit(t *testing.T, limit uint64, f func()) {
	t.Helper()
	var old syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old))
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: old.Max}))
	defer func() { require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old)) }()
	f()
}
