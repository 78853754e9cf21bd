package rootimage

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

// withMark is a file with text at an offset.
func withMark(offset int64, text string) []byte {
	b := make([]byte, offset+int64(len(text))+100)
	copy(b[offset:], text)
	return b
}

func TestKind(t *testing.T) {
	dir := t.TempDir()
	kind, err := Kind(dir)
	require.NoError(t, err)
	require.Equal(t, Dir, kind)

	write := func(b []byte) string {
		p := filepath.Join(t.TempDir(), "f")
		require.NoError(t, os.WriteFile(p, b, 0o644))
		return p
	}
	for _, m := range magics {
		kind, err := Kind(write(withMark(m.offset, m.bytes)))
		require.NoError(t, err)
		require.Equal(t, m.kind, kind)
	}
	for _, m := range foreign {
		_, err := Kind(write(withMark(m.offset, m.bytes)))
		require.ErrorIs(t, err, sys.ErrInvalid)
		require.ErrorContains(t, err, m.hint)
	}
	for _, b := range [][]byte{nil, []byte("x"), []byte("#!/bin/sh\n"), make([]byte, 70000)} {
		_, err := Kind(write(b))
		require.ErrorIs(t, err, sys.ErrInvalid)
	}
	_, err = Kind("/dev/null")
	require.ErrorIs(t, err, sys.ErrInvalid)
	_, err = Kind(filepath.Join(dir, "nonesuch"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestKindOfRealImages asks about images that others made.
func TestKindOfRealImages(t *testing.T) {
	dir := t.TempDir()
	for name, command := range map[string][]string{
		EROFS: {"mkfs.erofs", "--quiet", "IMAGE", dir},
		Ext4:  {"mke2fs", "-q", "-t", "ext4", "IMAGE", "4m"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Skip(err)
			}
			image := filepath.Join(t.TempDir(), "image")
			args := append([]string(nil), command[1:]...)
			for i := range args {
				if args[i] == "IMAGE" {
					args[i] = image
				}
			}
			out, err := exec.Command(command[0], args...).CombinedOutput()
			require.NoError(t, err, string(out))
			kind, err := Kind(image)
			require.NoError(t, err)
			require.Equal(t, name, kind)
		})
	}
}

func FuzzKind(f *testing.F) {
	for _, m := range magics {
		f.Add(withMark(m.offset, m.bytes))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, err := kindOf(bytes.NewReader(b))
		require.Equal(t, err == nil, kind != "")
	})
}
