package rootimage

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/erofs/go-erofs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// unseenBits are those that both readers here leave out; TestBoot has them.
const unseenBits = unix.S_ISUID | unix.S_ISGID | unix.S_ISVTX

// listHost describes a tree, a line for every name.
func listHost(t *testing.T, dir string, owners bool) []string {
	var lines []string
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		require.NoError(t, err)
		var st unix.Stat_t
		require.NoError(t, unix.Lstat(p, &st))
		if !owners {
			st.Uid, st.Gid = 0, 0
		}
		st.Mode &^= unseenBits
		extra := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f, err := os.Open(p)
			require.NoError(t, err)
			extra = sum(t, f)
			require.NoError(t, f.Close())
		case unix.S_IFLNK:
			extra, err = os.Readlink(p)
			require.NoError(t, err)
			st.Mtim = unix.Timespec{} // extracting does not set it
		case unix.S_IFCHR, unix.S_IFBLK:
			extra = fmt.Sprint(unix.Major(st.Rdev), ":", unix.Minor(st.Rdev))
		}
		xattrs, err := readXattrs(p)
		require.NoError(t, err)
		for _, x := range xattrs {
			extra += fmt.Sprintf(" %s=%x", x.name, sha256.Sum256([]byte(x.value)))
		}
		rel, err := filepath.Rel(dir, p)
		require.NoError(t, err)
		lines = append(lines, fmt.Sprintf("%q %o %d:%d %d.%09d links=%d %s", rel, st.Mode, st.Uid, st.Gid,
			st.Mtim.Sec, st.Mtim.Nsec, linkCount(st), extra))
		return nil
	}))
	return lines
}

// linkCount is 1 for directories: not every file system counts those.
func linkCount(st unix.Stat_t) uint64 {
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return 1
	}
	return uint64(st.Nlink)
}

func sum(t *testing.T, r io.Reader) string {
	h := sha256.New()
	_, err := io.Copy(h, r)
	require.NoError(t, err)
	return fmt.Sprintf("%x", h.Sum(nil))
}

// listImage describes an image the same way, read by an independent library.
func listImage(t *testing.T, image string) []string {
	f, err := os.Open(image)
	require.NoError(t, err)
	defer f.Close()
	img, err := erofs.Open(f)
	require.NoError(t, err)
	var lines []string
	var walk func(dir string)
	walk = func(dir string) {
		d, err := img.Open(dir)
		require.NoError(t, err, dir)
		defer d.Close()
		if dir == "." {
			fi, err := d.Stat()
			require.NoError(t, err)
			lines = append(lines, imageLine(t, img, ".", fi))
		}
		entries, err := d.(fs.ReadDirFile).ReadDir(-1)
		require.NoError(t, err, dir)
		slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
		for _, e := range entries {
			p := path.Join(dir, e.Name())
			fi, err := e.Info()
			require.NoError(t, err, p)
			lines = append(lines, imageLine(t, img, p, fi))
			if e.IsDir() {
				walk(p)
			}
		}
	}
	walk(".")
	return lines
}

func imageLine(t *testing.T, img fs.FS, p string, fi fs.FileInfo) string {
	st := fi.Sys().(*erofs.Stat)
	mode, extra := uint32(fi.Mode().Perm()), ""
	mtime, links := fmt.Sprintf("%d.%09d", st.Mtime, st.MtimeNs), st.Nlink
	switch fi.Mode().Type() {
	case 0:
		mode |= unix.S_IFREG
		f, err := img.Open(p)
		require.NoError(t, err, p)
		extra = sum(t, f)
		require.NoError(t, f.Close())
	case fs.ModeDir:
		mode |= unix.S_IFDIR
		links = 1
	case fs.ModeSymlink:
		mode |= unix.S_IFLNK
		target, err := img.(fs.ReadLinkFS).ReadLink(p)
		require.NoError(t, err, p)
		extra, mtime = target, "0.000000000"
	case fs.ModeNamedPipe:
		mode |= unix.S_IFIFO
	case fs.ModeSocket:
		mode |= unix.S_IFSOCK
	case fs.ModeDevice | fs.ModeCharDevice:
		mode |= unix.S_IFCHR
	case fs.ModeDevice:
		mode |= unix.S_IFBLK
	}
	if fi.Mode()&fs.ModeDevice != 0 {
		extra = fmt.Sprint(unix.Major(uint64(st.Rdev)), ":", unix.Minor(uint64(st.Rdev)))
	}
	names := make([]string, 0, len(st.Xattrs))
	for name := range st.Xattrs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		extra += fmt.Sprintf(" %s=%x", strings.TrimSuffix(name, "."), sha256.Sum256([]byte(st.Xattrs[name])))
	}
	return fmt.Sprintf("%q %o %d:%d %s links=%d %s", p, mode, st.UID, st.GID, mtime, links, extra)
}

// requireSame compares listings and shows only where they differ.
func requireSame(t *testing.T, want, got []string) {
	t.Helper()
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(want):
			t.Fatalf("unexpected: %.600s", got[i])
		case i >= len(got):
			t.Fatalf("missing: %.600s", want[i])
		case want[i] != got[i]:
			t.Fatalf("want: %.600s\n got: %.600s", want[i], got[i])
		}
	}
}

// plain drops what fsck.erofs does not restore: attributes and hard links.
func plain(lines []string) []string {
	var out []string
	for _, l := range lines {
		head, tail, _ := strings.Cut(l, " links=")
		_, tail, _ = strings.Cut(tail, " ")
		tail, _, _ = strings.Cut(tail, " user.")
		out = append(out, head+" "+tail)
	}
	return out
}
