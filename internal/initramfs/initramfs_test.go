package initramfs

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

// fixture makes an init, a directory to add and a kernel with modules.
func fixture(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	write := func(p, text string, mode os.FileMode) {
		t.Helper()
		p = filepath.Join(dir, p)
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		require.NoError(t, os.WriteFile(p, []byte(text), mode))
		require.NoError(t, os.Chmod(p, mode))
	}
	write("init", "#!/bin/probe\n", 0o700)
	write("tree/bin/probe", strings.Repeat("probe", 1001), 0o755|os.ModeSetuid)
	write("tree/etc/passwd", "root:x:0:0::/root:/bin/sh\n", 0o640)
	require.NoError(t, os.Symlink("probe", filepath.Join(dir, "tree/bin/sh")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "tree/empty"), 0o700))
	write("mods/1.0/modules.dep", "k/a.ko: k/b.ko\nk/b.ko:\nk/c.ko: k/b.ko\n", 0o644)
	for _, m := range []string{"a", "b", "c"} {
		write("mods/1.0/k/"+m+".ko", "\x7fELF"+m, 0o644)
	}
	return Config{
		Init:          filepath.Join(dir, "init"),
		KernelRelease: "1.0",
		ModulesDir:    filepath.Join(dir, "mods"),
		Modules:       []string{"a"},
		LateModules:   []string{"c", "b"},
		Add: []File{
			{Src: filepath.Join(dir, "tree"), Dst: "/opt/tree"},
			{Src: filepath.Join(dir, "tree/etc/passwd"), Dst: "/etc/passwd"},
			{Src: filepath.Join(dir, "tree/bin/sh"), Dst: "/bin/tool"},
		},
	}
}

// listing reads an uncompressed archive back, one line an entry. The device
// number is taken from the header itself, the library drops it.
func listing(t *testing.T, archive []byte) string {
	t.Helper()
	var b strings.Builder
	r := cpio.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return b.String()
		}
		require.NoError(t, err)
		require.Zero(t, h.Uid+h.Guid)
		require.Zero(t, h.ModTime.Unix())
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		fmt.Fprintf(&b, "%06o %s", uint32(h.Mode), h.Name)
		switch {
		case h.Linkname != "":
			fmt.Fprintf(&b, " -> %s", h.Linkname)
		case h.Mode&^cpio.ModePerm == cpio.TypeChar:
			i := bytes.Index(archive, []byte(h.Name+"\x00")) - 110
			fmt.Fprintf(&b, " %s:%s", archive[i+78:i+86], archive[i+86:i+94])
		case len(data) > 120:
			fmt.Fprintf(&b, " %d bytes", len(data))
		case len(data) > 0:
			fmt.Fprintf(&b, " %q", data)
		}
		b.WriteByte('\n')
	}
}

const wantListing = `040755 bin
104755 bin/tool 5005 bytes
040755 dev
020600 dev/console 00000005:00000001
020666 dev/null 00000001:00000003
040755 etc
100640 etc/passwd "root:x:0:0::/root:/bin/sh\n"
040755 etc/vminit
100644 etc/vminit/modules "# loaded before vminitd serves; dependencies first\n/lib/modules/1.0/k/b.ko <\n/lib/modules/1.0/k/a.ko < b\n"
100644 etc/vminit/modules.late "# loaded while vminitd serves; dependencies first\n/lib/modules/1.0/k/c.ko <\n"
100755 init "#!/bin/probe\n"
040755 lib
040755 lib/modules
040755 lib/modules/1.0
040755 lib/modules/1.0/k
100644 lib/modules/1.0/k/a.ko "\x7fELFa"
100644 lib/modules/1.0/k/b.ko "\x7fELFb"
100644 lib/modules/1.0/k/c.ko "\x7fELFc"
040755 opt
040755 opt/tree
040755 opt/tree/bin
104755 opt/tree/bin/probe 5005 bytes
120777 opt/tree/bin/sh -> probe
040700 opt/tree/empty
040755 opt/tree/etc
100640 opt/tree/etc/passwd "root:x:0:0::/root:/bin/sh\n"
040755 proc
040700 root
040755 run
040755 sys
041777 tmp
`

func TestBuildReadBack(t *testing.T) {
	c := fixture(t)
	for name, decompress := range map[string]func(io.Reader) (io.Reader, error){
		None: func(r io.Reader) (io.Reader, error) { return r, nil },
		Gzip: func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		Zstd: func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) },
		"":   func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) },
	} {
		c.Compression = name
		var buf bytes.Buffer
		info, err := Build(&buf, c)
		require.NoError(t, err)
		require.EqualValues(t, buf.Len(), info.Size)
		require.Equal(t, strings.Count(wantListing, "\n"), info.Entries)
		require.Equal(t, []string{"/lib/modules/1.0/k/b.ko", "/lib/modules/1.0/k/a.ko"}, info.Modules)
		require.Equal(t, []string{"/lib/modules/1.0/k/c.ko"}, info.LateModules)

		r, err := decompress(&buf)
		require.NoError(t, err)
		archive, err := io.ReadAll(r)
		require.NoError(t, err)
		require.EqualValues(t, len(archive), info.Unpacked)
		require.Equal(t, wantListing, listing(t, archive))
	}
}

// Times, places and the order of arguments must not show in the image.
func TestBuildReproducible(t *testing.T) {
	a, b := fixture(t), fixture(t)
	b.Add[0], b.Add[2] = b.Add[2], b.Add[0]
	old := time.Date(1999, 1, 2, 3, 4, 5, 0, time.UTC)
	require.NoError(t, os.Chtimes(b.Init, old, old))
	for _, z := range []string{None, Gzip, Zstd} {
		a.Compression, b.Compression = z, z
		ia, err := Build(io.Discard, a)
		require.NoError(t, err)
		ib, err := Build(io.Discard, b)
		require.NoError(t, err)
		require.Equal(t, ia, ib)
		require.Len(t, ia.SHA256, 64)
	}
}

func TestBuildErrors(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	sh, err := filepath.EvalSymlinks("/bin/sh")
	require.NoError(t, err)
	for name, tc := range map[string]struct {
		change func(*Config)
		text   string
	}{
		"no init":            {func(c *Config) { c.Init = "" }, "no init given"},
		"init is missing":    {func(c *Config) { c.Init = "/nonesuch" }, "/nonesuch"},
		"init is a dir":      {func(c *Config) { c.Init = "/" }, "not a regular file"},
		"init is dynamic":    {func(c *Config) { c.Init = sh }, "CGO_ENABLED=0"},
		"compression":        {func(c *Config) { c.Compression = "rar" }, `"rar"`},
		"no release":         {func(c *Config) { c.KernelRelease = "" }, "no kernel release"},
		"unknown module":     {func(c *Config) { c.LateModules = []string{"zz"} }, "no module zz"},
		"conflict":           {func(c *Config) { c.Add = []File{{self, "/init"}} }, "two sources for /init"},
		"below a file":       {func(c *Config) { c.Add = []File{{self, "/init/x"}} }, "no directory"},
		"file as root":       {func(c *Config) { c.Add = []File{{self, "/"}} }, "root directory"},
		"relative":           {func(c *Config) { c.Add = []File{{self, "x"}} }, "not absolute"},
		"no source":          {func(c *Config) { c.Add = []File{{"/nonesuch", "/x"}} }, "/nonesuch"},
		"device":             {func(c *Config) { c.Add = []File{{"/dev/null", "/x"}} }, "only files"},
		"ends archive":       {func(c *Config) { c.Add = []File{{self, "/TRAILER!!!"}} }, "ends an archive"},
		"file never ends":    {func(c *Config) { c.Add = []File{{"/proc/self/maps", "/x"}} }, "changed while"},
		"too long":           {func(c *Config) { c.Add = []File{{self, "/" + strings.Repeat("x/", 2100)}} }, "too long"},
		"more than a header": {func(c *Config) { c.Add = []File{{sparse(t, 1<<32), "/x"}} }, "4 GiB"},
	} {
		t.Run(name, func(t *testing.T) {
			c := fixture(t)
			tc.change(&c)
			_, err := Build(io.Discard, c)
			require.ErrorContains(t, err, tc.text)
		})
	}
}

func sparse(t *testing.T, size int64) string {
	p := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(p)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Truncate(size))
	return p
}

func TestBuildReportsWriteError(t *testing.T) {
	_, err := Build(failingWriter{}, fixture(t))
	require.ErrorIs(t, err, io.ErrClosedPipe)
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestParseFile(t *testing.T) {
	f, err := ParseFile("a:b:/c/d")
	require.NoError(t, err)
	require.Equal(t, File{Src: "a:b", Dst: "/c/d"}, f)
	for _, s := range []string{"", "a", ":/b", "a:", "a:b", "a:b:c"} {
		_, err := ParseFile(s)
		require.ErrorIs(t, err, sys.ErrInvalid, s)
	}
}
