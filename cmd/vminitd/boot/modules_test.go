package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseModules(t *testing.T) {
	list := "# made by hand\n\n/lib/a.ko\n  /lib/b.ko.zst  x=1 y=2 \t\r\n/lib/c.ko # why\nrelative.ko\n/nul\x00.ko\n/lib/d.ko"
	got, err := parseModules([]byte(list))
	require.Equal(t, []module{
		{Path: "/lib/a.ko"}, {Path: "/lib/b.ko.zst", Params: "x=1 y=2"}, {Path: "/lib/c.ko"}, {Path: "/lib/d.ko"},
	}, got)
	require.ErrorContains(t, err, "line 6")
	require.ErrorContains(t, err, "line 7")

	got, err = parseModules(nil)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestLoadModulesReportsAndGoesOn(t *testing.T) {
	dir := t.TempDir()
	list := filepath.Join(dir, "modules")
	require.NoError(t, LoadModules(list), "no list, nothing to do")

	require.NoError(t, os.WriteFile(list, []byte(dir+"/one.ko\n"+dir+"/two.ko\n"), 0o600))
	err := LoadModules(list)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "one.ko")
	require.ErrorContains(t, err, "two.ko", "a failure does not keep the others from being loaded")

	require.NoError(t, os.WriteFile(list, []byte(strings.Repeat("#", maxModuleList+1)), 0o600))
	require.ErrorContains(t, LoadModules(list), "larger")
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
