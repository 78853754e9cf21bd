package initramfs

import (
	"bytes"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"github.com/ulikunitz/xz"

	"vminit/internal/sys"
)

// Captured from Debian 12's linux-image-6.1.0-56-cloud-amd64, cut down to the
// modules used here and what they need.
const (
	capturedDir     = "testdata/lib/modules"
	capturedRelease = "6.1.0-56-cloud-amd64"
)

func TestResolveModules(t *testing.T) {
	for _, tc := range []struct {
		name  string
		names []string
		want  string // base names
	}{
		{"default boot set", DefaultModules(), `
			virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_mmio
			vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport`},
		{"default late set", DefaultLateModules(), `
			virtio_ring virtio virtio_blk crc32c-intel libcrc32c erofs overlay`},
		{"default rest", DefaultRestModules(), `
			virtio_ring virtio failover net_failover virtio_net virtio-rng fuse virtiofs loop virtio_console
			vsock vmw_vsock_virtio_transport_common vsock_loopback`},
		{"dash and underscore are the same", []string{"virtio_rng", "virtio-rng", "crc32c_intel"},
			"virtio_ring virtio virtio-rng crc32c-intel"},
		{"soft dependency of a dependency", []string{"erofs"}, "crc32c-intel libcrc32c erofs"},
		{"soft dependency after", []string{"mpls_iptunnel"}, "ip_tunnel mpls_router mpls_iptunnel mpls_gso"},
		{"dependencies, then soft ones", []string{"xt_LOG"}, "x_tables nf_log_syslog xt_LOG"},
		{"several lines of soft dependencies", []string{"btrfs"}, `
			crc32c-intel libcrc32c zstd_compress raid6_pq xor
			blake2b_generic sha256-ssse3 xxhash_generic btrfs`},
		{"circle of soft dependencies", []string{"vfio"}, "vfio vfio_iommu_type1"},
		{"alias", []string{"fs-erofs"}, "crc32c-intel libcrc32c erofs"},
		{"alias with a pattern", []string{"virtio:d00000002v00001AF4"}, "virtio_ring virtio virtio_blk"},
		{"built in", []string{"ext4", "crc32c_generic", "serial_core"}, ""},
		{"alias of a built-in", []string{"crypto-crc32c-generic"}, ""},
		{"optional", []string{"9p?", "loop?"}, "loop"},
		{"none", nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ResolveModules(capturedDir, capturedRelease, tc.names)
			require.NoError(t, err)
			base := []string{}
			for _, p := range got {
				base = append(base, strings.TrimSuffix(path.Base(p), ".ko"))
			}
			require.Equal(t, strings.Fields(tc.want), base, "load order")
		})
	}
}

func TestResolveModulesErrors(t *testing.T) {
	_, err := ResolveModules(capturedDir, capturedRelease, []string{"loop", "nonesuch", "9p"})
	require.ErrorIs(t, err, sys.ErrNotFound)
	require.ErrorContains(t, err, "nonesuch, 9p")

	_, err = ResolveModules(capturedDir, "1.2.3", []string{"loop"})
	require.ErrorIs(t, err, os.ErrNotExist)

	for _, release := range []string{"", "..", "a/b", "/"} {
		_, err = ResolveModules(capturedDir, release, nil)
		require.ErrorIs(t, err, sys.ErrInvalid, release)
	}
}

func TestParseDepRejects(t *testing.T) {
	for _, s := range []string{"no colon", "../up.ko:", "a.ko: /etc/passwd", ": x"} {
		_, err := parseDep([]byte(s))
		require.ErrorIs(t, err, sys.ErrInvalid, s)
	}
}

// TestAgainstModprobe compares with what modprobe would load, for every module
// of the installed kernel that is near to what a guest may want. (Not btrfs:
// modprobe 30 heeds only the first of its three lines in modules.softdep.)
func TestAgainstModprobe(t *testing.T) {
	modprobe, err := exec.LookPath("modprobe")
	if err != nil {
		t.Skip("no modprobe to compare with")
	}
	_, release, err := FindKernel()
	if err != nil {
		t.Skip(err)
	}
	names := []string{"crc32c", "xfs", "nfsd", "cifs", "xt_LOG", "mpls_iptunnel", "vfio",
		"virtio_scsi", "vhost_vsock", "dm-raid", "bridge", "fs-overlay", "net-pf-40"}
	for _, n := range slices.Concat(names, DefaultModules(), DefaultLateModules(), DefaultRestModules()) {
		name := strings.TrimSuffix(n, "?")
		out, err := exec.Command(modprobe, "-S", release, "--show-depends", name).Output()
		if err != nil {
			continue // this kernel does not have it
		}
		var want []string
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			if len(f) < 2 || f[0] != "insmod" {
				continue
			}
			rel := strings.TrimPrefix(f[1], path.Join(DefaultModulesDir, release)+"/")
			if !slices.Contains(want, rel) { // modprobe may say it twice
				want = append(want, rel)
			}
		}
		got, err := ResolveModules(DefaultModulesDir, release, []string{name})
		require.NoError(t, err)
		require.Equal(t, want, got, name)
	}
}

func TestReadModule(t *testing.T) {
	const elf = "\x7fELF and so on"
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, data, 0o644))
		return p
	}
	compressed := func(z interface {
		Write([]byte) (int, error)
		Close() error
	}, buf *bytes.Buffer) []byte {
		_, err := z.Write([]byte(elf))
		require.NoError(t, err)
		require.NoError(t, z.Close())
		return buf.Bytes()
	}
	var gz, zs, x bytes.Buffer
	zw, err := zstd.NewWriter(&zs)
	require.NoError(t, err)
	xw, err := xz.NewWriter(&x)
	require.NoError(t, err)
	for _, p := range []string{
		write("a.ko", []byte(elf)),
		write("a.ko.gz", compressed(gzip.NewWriter(&gz), &gz)),
		write("a.ko.zst", compressed(zw, &zs)),
		write("a.ko.xz", compressed(xw, &x)),
	} {
		data, err := readModule(p)
		require.NoError(t, err, p)
		require.Equal(t, elf, string(data), p)
		require.Equal(t, filepath.Join(dir, "a.ko"), plainName(p))
	}
	for _, p := range []string{
		write("bad.ko", []byte("not ELF")), write("bad.ko.gz", []byte("x")),
		write("bad.ko.zst", []byte("x")), write("bad.ko.xz", []byte("x")), filepath.Join(dir, "none.ko"),
	} {
		_, err := readModule(p)
		require.ErrorContains(t, err, p)
	}
}

func TestStripSignature(t *testing.T) {
	sig := "pkcs7" + "\x00\x00\x02\x00\x00\x00\x00\x00" + "\x00\x00\x00\x05" + "~Module signature appended~\n"
	require.Equal(t, "\x7fELF", string(stripSignature([]byte("\x7fELF"+sig))))
	for _, s := range []string{
		"", "\x7fELF", "~Module signature appended~\n", "short~Module signature appended~\n",
		strings.Replace(sig, "\x05~", "\xff~", 1), // claims more than there is
	} {
		require.Equal(t, s, string(stripSignature([]byte(s))))
	}
}

// FuzzIndex feeds depmod's files with anything: no panic, and no path that
// leads out of the modules directory.
func FuzzIndex(f *testing.F) {
	for _, n := range []string{"modules.dep", "modules.softdep", "modules.alias", "modules.builtin", "modules.builtin.modinfo"} {
		b, err := os.ReadFile(filepath.Join(capturedDir, capturedRelease, n))
		require.NoError(f, err)
		f.Add(b, "erofs")
	}
	f.Add([]byte("a.ko: b.ko\nb.ko: a.ko\nsoftdep a pre: b post: a\nalias [-]x a"), "a")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		mods, err := parseDep(b)
		if err != nil {
			return
		}
		idx := index{mods: mods, soft: parseSoftdep(b), aliases: parseAlias(b), builtin: make(map[string]bool)}
		parseBuiltin(b, idx.builtin)
		idx.builtinAliases = parseModinfo(b, idx.builtin)
		r := newResolver(idx)
		found, _ := idx.lookup(name)
		for _, m := range found {
			_ = r.visit(m)
		}
		loaded := make(map[string]bool)
		for _, m := range r.order {
			require.True(t, filepath.IsLocal(r.mods[m].path), m)
			require.False(t, loaded[m], "%s twice", m)
			loaded[m] = true
		}
	})
}
