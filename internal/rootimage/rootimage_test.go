package rootimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/erofs/go-erofs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// requireRoot skips for an ordinary user, unless the rung demands root.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if rung := os.Getenv("VMINIT_RUNG"); rung == "root" || rung == "vm" {
		t.Fatalf("rung %s needs root", rung)
	}
	t.Skip("needs root")
}

// maker makes files below a directory, failing the test if it cannot.
type maker struct {
	t   *testing.T
	dir string
}

func (m maker) path(name string) string { return filepath.Join(m.dir, name) }

func (m maker) file(name string, data []byte, mode os.FileMode) {
	m.t.Helper()
	require.NoError(m.t, os.WriteFile(m.path(name), data, 0o600))
	require.NoError(m.t, os.Chmod(m.path(name), mode))
}

func (m maker) mkdir(name string, mode os.FileMode) {
	m.t.Helper()
	require.NoError(m.t, os.Mkdir(m.path(name), 0o700))
	require.NoError(m.t, os.Chmod(m.path(name), mode))
}

func (m maker) xattr(name, attr, value string) {
	m.t.Helper()
	require.NoError(m.t, unix.Lsetxattr(m.path(name), attr, []byte(value), 0), attr)
}

// noise is n bytes that are not zero.
func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i%251 + 1)
	}
	return b
}

// fixture makes a tree of everything an ordinary user can make.
func fixture(t *testing.T) maker {
	m := maker{t, t.TempDir()}
	m.mkdir("bin", 0o755)
	m.mkdir("empty", 0o711)
	m.mkdir("sticky", 0o777|os.ModeSticky)
	m.mkdir("sizes", 0o755)
	for _, n := range []int{0, 1, 2047, 2048, 2049, 4031, 4032, 4033, 4095, 4096, 4097, 6143, 6144, 6145, 8192, 1 << 20, 1<<20 + 1} {
		m.file(fmt.Sprintf("sizes/%d", n), noise(n), 0o644)
	}
	m.file("bin/tool", noise(5000), 0o755|os.ModeSetuid|os.ModeSetgid)
	for i := range 5 {
		require.NoError(t, os.Link(m.path("bin/tool"), m.path(fmt.Sprintf("bin/link%d", i))))
	}
	require.NoError(t, os.Link(m.path("bin/tool"), m.path("aaa-first-name")))
	require.NoError(t, os.Symlink("tool", m.path("bin/sh")))
	require.NoError(t, os.Symlink(strings.Repeat("x/", 2000)+"end", m.path("long-link")))
	require.NoError(t, unix.Mkfifo(m.path("fifo"), 0o640))
	require.NoError(t, unix.Mknod(m.path("socket"), unix.S_IFSOCK|0o600, 0))
	m.file("name with\nnewline", nil, 0o400)
	m.file("not\xffutf8", []byte("x"), 0o644)
	m.file("-before-dots", nil, 0o644) // '-' sorts before '.'
	m.file(strings.Repeat("n", 255), []byte("x"), 0o644)
	m.mkdir("many", 0o755)
	for i := range 700 {
		m.file(fmt.Sprintf("many/%s-%03d", strings.Repeat("z", i%90), i), []byte{byte(i)}, 0o644)
	}
	deep := "deep"
	for range 40 {
		m.mkdir(deep, 0o755)
		deep += "/d"
	}
	m.file("attrs", []byte("x"), 0o644)
	m.xattr("attrs", "user.small", "value")
	m.xattr("attrs", "user.empty", "")
	m.xattr("attrs", "user.big", strings.Repeat("b", 3000))

	f, err := os.Create(m.path("holes"))
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("middle"), 10<<20)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(20<<20+5))
	require.NoError(t, f.Close())
	return m
}

// build makes an image of the tree and returns its path.
func build(t *testing.T, dir string, o Options) (string, Info) {
	t.Helper()
	dst := filepath.Join(t.TempDir(), "image")
	info, err := Build(t.Context(), dst, dir, o)
	require.NoError(t, err)
	fi, err := os.Stat(dst)
	require.NoError(t, err)
	require.Equal(t, info.Size, fi.Size())
	require.Zero(t, fi.Size()%blockSize)
	kind, err := Kind(dst)
	require.NoError(t, err)
	require.Equal(t, EROFS, kind)
	return dst, info
}

func TestReadBack(t *testing.T) {
	m := fixture(t)
	image, info := build(t, m.dir, Options{Owner: OwnerRoot})
	requireSame(t, listHost(t, m.dir, false), listImage(t, image))
	require.Less(t, info.Inodes, len(listHost(t, m.dir, false)), "hard links are one inode")

	var st unix.Stat_t
	require.NoError(t, unix.Stat(image, &st))
	require.Less(t, st.Blocks*512, int64(8<<20), "holes take space")
	require.Greater(t, st.Size, int64(20<<20))
}

// TestFsck lets the reference implementation check the image and unpack it.
func TestFsck(t *testing.T) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Skip("no fsck.erofs: apt-get install erofs-utils")
	}
	m := fixture(t)
	image, info := build(t, m.dir, Options{})
	to := filepath.Join(t.TempDir(), "out")
	out, err := exec.Command(fsck, "--extract="+to, "--preserve", image).CombinedOutput()
	require.NoError(t, err, string(out))
	owners := os.Geteuid() == 0
	requireSame(t, plain(listHost(t, m.dir, owners)), plain(listHost(t, to, owners)))

	out, err = exec.Command("dump.erofs", "-s", image).CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), info.UUID)
	require.Contains(t, string(out), "sb_csum")
	require.Regexp(t, fmt.Sprintf(`inode count: +%d\n`, info.Inodes), string(out))
}

func TestPrivilegedThings(t *testing.T) {
	requireRoot(t)
	m := maker{t, t.TempDir()}
	m.mkdir("d", 0o755)
	require.NoError(t, unix.Mknod(m.path("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	require.NoError(t, unix.Mknod(m.path("big"), unix.S_IFBLK|0o600, int(unix.Mkdev(4000, 70000))))
	m.file("owned", []byte("x"), 0o644)
	require.NoError(t, os.Lchown(m.path("owned"), 100000, 4000000000))
	require.NoError(t, os.Lchown(m.path("d"), 33, 34))
	require.NoError(t, os.Symlink("d", m.path("l")))
	require.NoError(t, os.Lchown(m.path("l"), 5, 6))
	m.file("ping", []byte("x"), 0o755)
	m.xattr("ping", "security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	m.xattr("d", "trusted.overlay.opaque", "y")
	m.xattr("owned", "system.posix_acl_access", "\x02\x00\x00\x00"+
		"\x01\x00\x06\x00\xff\xff\xff\xff"+"\x02\x00\x07\x00\x05\x00\x00\x00"+"\x04\x00\x04\x00\xff\xff\xff\xff"+
		"\x10\x00\x07\x00\xff\xff\xff\xff"+"\x20\x00\x04\x00\xff\xff\xff\xff")
	image, _ := build(t, m.dir, Options{})
	requireSame(t, listHost(t, m.dir, true), listImage(t, image))

	image, _ = build(t, m.dir, Options{Owner: OwnerRoot})
	for _, line := range listImage(t, image) {
		require.Contains(t, line, " 0:0 ")
	}
}

func TestReproducible(t *testing.T) {
	m := fixture(t)
	copied := filepath.Join(t.TempDir(), "copy")
	out, err := exec.Command("cp", "-a", "--sparse=never", m.dir, copied).CombinedOutput()
	require.NoError(t, err, string(out))
	a, ia := build(t, m.dir, Options{})
	b, ib := build(t, copied, Options{})
	require.Equal(t, ia, ib)
	da, err := os.ReadFile(a)
	require.NoError(t, err)
	db, err := os.ReadFile(b)
	require.NoError(t, err)
	require.True(t, bytes.Equal(da, db), "images of equal trees differ")

	m.file("sizes/1", []byte("?"), 0o644)
	_, changed := build(t, m.dir, Options{})
	require.NotEqual(t, ia.UUID, changed.UUID)
}

func TestMtime(t *testing.T) {
	m := maker{t, t.TempDir()}
	m.file("a", []byte("x"), 0o644)
	_, first := build(t, m.dir, Options{Mtime: time.Unix(1, 2)})
	later := time.Now().Add(time.Hour)
	require.NoError(t, os.Chtimes(m.path("a"), later, later))
	image, second := build(t, m.dir, Options{Mtime: time.Unix(1, 2)})
	require.Equal(t, first, second)
	for _, line := range listImage(t, image) {
		require.Contains(t, line, " 1.000000002 ")
	}
}

// TestRandomTrees compares what was written with what an independent reader
// finds, for trees nobody thought of.
func TestRandomTrees(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 0))
			m := maker{t, t.TempDir()}
			randomTree(m, r, ".", 0)
			image, _ := build(t, m.dir, Options{})
			requireSame(t, listHost(t, m.dir, os.Geteuid() == 0), listImage(t, image))
			if fsck, err := exec.LookPath("fsck.erofs"); err == nil {
				out, err := exec.Command(fsck, "--extract", image).CombinedOutput()
				require.NoError(t, err, string(out))
			}
		})
	}
}

func randomTree(m maker, r *rand.Rand, dir string, depth int) {
	for i := range r.IntN(40) {
		name := path.Join(dir, fmt.Sprintf("%s%d", strings.Repeat(string(rune('!'+r.IntN(14))), r.IntN(200)), i))
		switch k := r.IntN(12); {
		case k == 0 && depth < 3:
			m.mkdir(name, os.FileMode(r.IntN(0o100)|0o700))
			randomTree(m, r, name, depth+1)
		case k == 1:
			require.NoError(m.t, os.Symlink(strings.Repeat("t", 1+r.IntN(3000)), m.path(name)))
		default:
			m.file(name, noise(r.IntN(3*blockSize)), os.FileMode(r.IntN(0o1000)|0o600))
			if k < 4 {
				m.xattr(name, "user.x", strings.Repeat("v", r.IntN(3900)))
			}
		}
	}
}

func TestMountsAreLeftEmpty(t *testing.T) {
	requireRoot(t)
	m := maker{t, t.TempDir()}
	m.mkdir("proc", 0o555)
	if err := unix.Mount("tmpfs", m.path("proc"), "tmpfs", 0, "mode=0555"); err != nil {
		t.Skip("cannot mount here: ", err)
	}
	defer func() { require.NoError(t, unix.Unmount(m.path("proc"), unix.MNT_DETACH)) }()
	m.file("proc/secret", []byte("x"), 0o644)
	image, info := build(t, m.dir, Options{})
	require.Equal(t, []string{"proc"}, info.Mounts)
	require.Len(t, listImage(t, image), 2)
}

func TestBuildErrors(t *testing.T) {
	m := maker{t, t.TempDir()}
	m.file("f", noise(3<<20), 0o644)
	outDir := t.TempDir()
	dst := filepath.Join(outDir, "image")

	_, err := Build(t.Context(), dst, m.path("f"), Options{})
	require.ErrorIs(t, err, sys.ErrInvalid)
	_, err = Build(t.Context(), dst, m.path("nonesuch"), Options{})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = Build(t.Context(), filepath.Join(outDir, "no", "dir"), m.dir, Options{})
	require.ErrorIs(t, err, os.ErrNotExist)

	ctx, cancel := context.WithCancel(t.Context())
	_, err = Build(ctx, dst, m.dir, Options{Progress: func(done, total int64) {
		require.LessOrEqual(t, done, total)
		cancel()
	}})
	require.ErrorIs(t, err, context.Canceled)

	_, err = Build(t.Context(), dst, m.dir, Options{Progress: func(done, _ int64) {
		if done == 1<<20 { // while it is being read
			require.NoError(t, os.Truncate(m.path("f"), 1<<20+1))
		}
	}})
	require.Error(t, err)
	require.True(t, errors.Is(err, errChanged), err)

	left, err := os.ReadDir(outDir)
	require.NoError(t, err)
	require.Empty(t, left, "something is left behind")
}

func TestProgressReachesTotal(t *testing.T) {
	m := fixture(t)
	var last, total int64
	build(t, m.dir, Options{Progress: func(d, n int64) {
		require.GreaterOrEqual(t, d, last)
		last, total = d, n
	}})
	require.Positive(t, total)
	require.Equal(t, total, last)
}

func TestFileBeyond4GiB(t *testing.T) {
	m := maker{t, t.TempDir()}
	m.file("large", nil, 0o644)
	f, err := os.OpenFile(m.path("large"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("last block"), 5<<30-blockSize)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(5<<30+7)) // the rest follows the inode
	require.NoError(t, f.Close())
	image, info := build(t, m.dir, Options{})
	require.Equal(t, int64(5<<30+blockSize), info.Size)
	out, err := os.Open(image)
	require.NoError(t, err)
	defer out.Close()
	got := make([]byte, 10)
	_, err = out.ReadAt(got, info.Size-blockSize)
	require.NoError(t, err)
	require.Equal(t, "last block", string(got))
	img, err := erofs.Open(out)
	require.NoError(t, err)
	fi, err := fs.Stat(img, "large")
	require.NoError(t, err)
	require.Equal(t, int64(5<<30+7), fi.Size())
}
