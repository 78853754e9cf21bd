package boot

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseModules(t *testing.T) {
	list := "# made by hand\n\n/lib/a.ko\n  /lib/b.ko.zst  x=1 y=2 \t\r\n/lib/c.ko # why\nrelative.ko\n/nul\x00.ko\n/lib/d.ko <\n/lib/e-f.ko y=1 < d c # x"
	got, err := parseModules([]byte(list))
	require.Equal(t, []module{
		{Path: "/lib/a.ko"}, {Path: "/lib/b.ko.zst", Params: "x=1 y=2"}, {Path: "/lib/c.ko"},
		{Path: "/lib/d.ko", Needs: []string{}}, {Path: "/lib/e-f.ko", Params: "y=1", Needs: []string{"d", "c"}},
	}, got)
	require.ErrorContains(t, err, "line 6")
	require.ErrorContains(t, err, "line 7")

	require.Equal(t, "e_f", got[4].name())
	require.Equal(t, []int{0, 1}, got[2].needs(got[:2]), "a line that does not tell may need all before it")
	require.Empty(t, got[3].needs(got[:3]))
	require.Equal(t, []int{2, 3}, got[4].needs(got[:4]))

	got, err = parseModules(nil)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestLoadModulesReportsAndGoesOn(t *testing.T) {
	dir := t.TempDir()
	r, _ := testRunner()
	list := filepath.Join(dir, "modules")
	require.NoError(t, LoadModules(r, list), "no list, nothing to do")

	require.NoError(t, os.WriteFile(list, []byte(dir+"/one.ko\n"+dir+"/two.ko\n"), 0o600))
	err := LoadModules(r, list)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "one.ko")
	require.ErrorContains(t, err, "two.ko", "a failure does not keep the others from being loaded")

	require.NoError(t, os.WriteFile(list, []byte(strings.Repeat("#", maxModuleList+1)), 0o600))
	require.ErrorContains(t, LoadModules(r, list), "larger")
}

// Every module is loaded after what it needs, and what is independent is loaded
// at the same time.
func TestLoadAll(t *testing.T) {
	modules := []module{
		{Path: "/a.ko", Needs: []string{}}, {Path: "/b.ko", Needs: []string{}}, {Path: "/c.ko", Needs: []string{"a"}}, {Path: "/d.ko"},
	}
	for _, workers := range []int{1, 2, 8} {
		var mu sync.Mutex
		done := map[string]bool{}
		both := make(chan struct{}, 2)
		err := loadAll(modules, workers, func(f func()) { f() }, func(m module) error {
			if workers > 1 && len(m.Needs) == 0 && m.Needs != nil { // a and b wait for each other
				both <- struct{}{}
				for len(both) < 2 {
					runtime.Gosched()
				}
			}
			mu.Lock()
			defer mu.Unlock()
			switch m.name() {
			case "c":
				require.True(t, done["a"])
			case "d":
				require.Len(t, done, 3)
			}
			done[m.name()] = true
			if m.name() == "b" {
				return os.ErrInvalid
			}
			return nil
		})
		require.ErrorIs(t, err, os.ErrInvalid)
		require.Len(t, done, 4, "%d workers", workers)
	}
	require.NoError(t, loadAll(nil, 4, func(f func()) { f() }, nil))
}

func FuzzParseModules(f *testing.F) {
	f.Add([]byte("/lib/a.ko p=1\n# x\n\nb.ko\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		modules, _ := parseModules(b)
		for _, m := range modules {
			if !filepath.IsAbs(m.Path) || strings.ContainsAny(m.Path+m.Params, "\x00\n") {
				t.Errorf("module %q from %q", m, b)
			}
		}
	})
}
