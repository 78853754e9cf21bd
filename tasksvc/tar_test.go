package tasksvc

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

// members are headers of every kind, with what does not fit into a ustar block.
func members() []*tarHeader {
	now := time.Unix(1700000000, 123456789)
	long := strings.Repeat("d/", 150) + "f"
	return []*tarHeader{
		{name: "dir/", kind: tarDir, mode: 0o1755, mtime: time.Unix(1, 0)},
		{name: "dir/file", kind: tarRegular, mode: 0o4644, uid: 1, gid: 2, size: 5, mtime: now},
		{name: "dir/block", kind: tarRegular, mode: 0o600, size: 1024, mtime: now},
		{name: "dir/empty", kind: tarRegular, mtime: now},
		{name: "dir/hard", kind: tarHardLink, link: "dir/file", mode: 0o4644, mtime: now},
		{name: "dir/soft", kind: tarSymlink, link: "/etc/../x", mode: 0o777, mtime: now},
		{name: "fifo", kind: tarFifo, mode: 0o622, mtime: now},
		{name: "dev", kind: tarChar, mode: 0o666, major: 1, minor: 3, mtime: now},
		{name: long, kind: tarRegular, size: 3, uid: 4294967294, gid: 2097152, mtime: time.Unix(-5, 0)},
		{name: "l" + long, kind: tarSymlink, link: long, mtime: now},
		{name: "naïve \n name", kind: tarRegular, size: 1, mtime: now, xattrs: map[string]string{"user.x": "a\x00b=c\n", "security.capability": "\x01\x00\x00\x02"}},
		{name: "dir/sparse", kind: tarRegular, sparse: true, size: 1 << 40, extents: []extent{{0, 4096}, {1 << 30, 100}, {1<<40 - 1, 1}}, mtime: now},
		{name: "dir/hole", kind: tarRegular, sparse: true, size: 1 << 20, mtime: now},
		{name: long + "sparse", kind: tarRegular, sparse: true, size: 10, extents: []extent{{3, 2}}, mtime: now},
	}
}

func content(h *tarHeader) []byte {
	if h.kind != tarRegular {
		return nil
	}
	return bytes.Repeat([]byte{'x'}, int(h.dataSize()))
}

func archive(t testing.TB, headers []*tarHeader) []byte {
	var b bytes.Buffer
	w := &tarWriter{w: &b}
	for _, h := range headers {
		require.NoError(t, w.header(h), h.name)
		for data := content(h); len(data) > 0; data = data[min(700, len(data)):] {
			_, err := w.Write(data[:min(700, len(data))])
			require.NoError(t, err)
		}
	}
	require.NoError(t, w.close())
	require.Zero(t, b.Len()%tarBlock)
	return b.Bytes()
}

func TestTarRoundTrip(t *testing.T) {
	r := &tarReader{r: bytes.NewReader(archive(t, members()))}
	for _, want := range members() {
		got, err := r.next()
		require.NoError(t, err, want.name)
		require.True(t, want.mtime.Equal(got.mtime), "%s: %v %v", want.name, want.mtime, got.mtime)
		got.mtime = want.mtime
		require.Equal(t, want, got)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		require.True(t, bytes.Equal(content(want), data), "%s: %d bytes", want.name, len(data))
	}
	_, err := r.next()
	require.ErrorIs(t, err, io.EOF)
}

// Go's reader sees in ours what we meant, and we see what its writer means.
func TestTarAgainstGo(t *testing.T) {
	r := tar.NewReader(bytes.NewReader(archive(t, members())))
	for _, want := range members() {
		h, err := r.Next()
		require.NoError(t, err, want.name)
		require.Equal(t, []any{want.name, want.link, int(want.uid), int(want.gid), want.size, int64(want.major)},
			[]any{h.Name, h.Linkname, h.Uid, h.Gid, h.Size, h.Devmajor})
		require.True(t, want.mtime.Equal(h.ModTime), h.Name)
		for key, value := range want.xattrs {
			require.Equal(t, value, h.PAXRecords[paxXattr+key])
		}
		if want.size < 1<<21 {
			data, err := io.ReadAll(r)
			require.NoError(t, err)
			require.Len(t, data, int(want.size))
		}
	}
	_, err := r.Next()
	require.ErrorIs(t, err, io.EOF)

	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatGNU, tar.FormatPAX} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		name := strings.Repeat("dir/", 30) + "file"
		if format != tar.FormatUSTAR {
			name = strings.Repeat("dir/", 60) + "file"
		}
		h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o640, Uid: 1000, Size: 3, ModTime: time.Unix(5, 0), Format: format}
		if format == tar.FormatGNU {
			h.Uid = 1 << 30
		}
		require.NoError(t, w.WriteHeader(h), format.String())
		io.WriteString(w, "abc")
		require.NoError(t, w.WriteHeader(&tar.Header{Name: "ln", Typeflag: tar.TypeSymlink, Linkname: name[:90], Format: format}))
		require.NoError(t, w.Close())
		r := &tarReader{r: &b}
		got, err := r.next()
		require.NoError(t, err)
		require.Equal(t, []any{name, uint32(h.Uid), int64(3), uint32(0o640), byte(tarRegular)}, []any{got.name, got.uid, got.size, got.mode, got.kind})
		got, err = r.next()
		require.NoError(t, err)
		require.Equal(t, name[:90], got.link)
	}
}

// GNU tar is content with ours.
func TestTarAgainstGNU(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("no tar") // present on every development machine
	}
	list := exec.Command("tar", "-tvf", "-")
	list.Stdin = bytes.NewReader(archive(t, members()))
	out, err := list.CombinedOutput()
	require.NoError(t, err, "%s", out)
	for _, want := range []string{"drwxr-xr-t", "-rwSr--r-- 1/2", "dir/hard link to dir/file", "dir/soft -> /etc/../x", fmt.Sprint(1 << 40)} {
		require.Contains(t, string(out), want)
	}
}

func TestTarRefused(t *testing.T) {
	good := archive(t, []*tarHeader{{name: "f", kind: tarRegular, size: 600}})
	for name, data := range map[string][]byte{
		"garbage":        bytes.Repeat([]byte("garbage!"), 64),
		"cut header":     good[:100],
		"cut data":       good[:700],
		"cut padding":    good[:1400],
		"gzip":           append([]byte("\x1f\x8b\x08"), make([]byte, 600)...),
		"long record":    rawHeader(tarPax, 2<<20),
		"long name":      archive(t, []*tarHeader{{name: strings.Repeat("x", 5000), kind: tarRegular}}),
		"huge":           rawHeader(tarLongName, 1<<32),
		"many extents":   paxMember("22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n27 GNU.sparse.realsize=10\n", "99999999\n"),
		"endless map":    paxMember("22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n27 GNU.sparse.realsize=10\n", strings.Repeat("1", 100)),
		"map disordered": paxMember("22 GNU.sparse.size=99\n31 GNU.sparse.map=5,1,0,1,9,1,9\n", ""),
		"overflow":       paxMember("22 GNU.sparse.size=99\n48 GNU.sparse.map=4611686018427387903,4611686018427387903\n", ""),
		"pax length":     paxMember("99 path=x\n", ""),
		"pax zero":       paxMember("0 path=x\n", ""),
		"pax key":        paxMember("5 =x\n", ""),
		"pax size":       paxMember("11 size=-1\n", ""),
		"nul":            paxMember("13 path=a\x00b\n", ""),
	} {
		r := &tarReader{r: bytes.NewReader(data)}
		_, err := r.next()
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if err == nil {
			_, err = r.next()
		}
		require.ErrorIs(t, err, sys.ErrInvalid, name)
	}
}

func rawHeader(kind byte, size int64) []byte {
	b := ustar(&tarHeader{kind: kind}, "x", size, map[string]string{})
	return b[:]
}

func paxMember(records, data string) []byte {
	b := append(rawHeader(tarPax, int64(len(records))), records...)
	b = append(b, padding(int64(len(b)))...)
	b = append(b, rawHeader(tarRegular, tarBlock)...)
	return append(b, append([]byte(data), make([]byte, tarBlock-len(data))...)...)
}

func FuzzTar(f *testing.F) {
	f.Add(archive(f, members()))
	f.Add(paxMember("22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n27 GNU.sparse.realsize=10\n", "1\n0\n0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &tarReader{r: bytes.NewReader(data)}
		for {
			h, err := r.next()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, sys.ErrInvalid) {
					t.Fatal(err)
				}
				return
			}
			if h.size < 0 || len(h.name) > maxTarName || len(h.extents) > maxTarExtents || h.dataSize() < 0 {
				t.Fatalf("%+v", h)
			}
			io.CopyN(io.Discard, r, 1000)
		}
	})
}
