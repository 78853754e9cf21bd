package cgroup2

import (
	"encoding/binary"
	"math"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestParseUint(t *testing.T) {
	for in, want := range map[string]uint64{
		"0": 0, "42": 42, "max": math.MaxUint64, "18446744073709551615": math.MaxUint64,
	} {
		got, err := parseUint([]byte(in))
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, in := range []string{"", "-1", "+1", "1.5", "18446744073709551616", "99999999999999999999", "0x10", "1 2", "maximum"} {
		_, err := parseUint([]byte(in))
		require.Error(t, err, in)
	}
}

func TestParseEvents(t *testing.T) {
	ev, err := parseEvents([]byte("populated 1\nfrozen 0\n"))
	require.NoError(t, err)
	require.Equal(t, events{populated: true}, ev)

	ev, err = parseEvents([]byte("populated 0\nfrozen 1\nnew_key 7\n"))
	require.NoError(t, err)
	require.Equal(t, events{frozen: true}, ev)

	_, err = parseEvents([]byte("populated yes\n"))
	require.Error(t, err)
}

func TestParsePids(t *testing.T) {
	pids, err := parsePids([]byte("12\n0\n7\n"))
	require.NoError(t, err)
	require.Equal(t, []int{12, 7}, pids)
	for _, in := range []string{"x\n", "-1\n", "99999999999\n"} {
		_, err := parsePids([]byte(in))
		require.Error(t, err, in)
	}
}

func TestParseTgid(t *testing.T) {
	pid, err := parseTgid([]byte("Name:\tsleep\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t4711\nNgid:\t0\n"))
	require.NoError(t, err)
	require.Equal(t, 4711, pid)
	for _, in := range []string{"", "Tgid:\tx\n", "Tgid:\t0\n"} {
		_, err := parseTgid([]byte(in))
		require.Error(t, err, in)
	}
}

// dirent makes one getdents64 record, padded to eight bytes as the kernel does.
func dirent(kind byte, name string) []byte {
	rec := make([]byte, (19+len(name)+1+7)/8*8)
	binary.NativeEndian.PutUint16(rec[16:], uint16(len(rec)))
	rec[18] = kind
	copy(rec[19:], name)
	return rec
}

func TestAppendDirs(t *testing.T) {
	var data []byte
	for _, d := range []struct {
		kind byte
		name string
	}{{unix.DT_DIR, "."}, {unix.DT_DIR, ".."}, {unix.DT_REG, "cgroup.procs"}, {unix.DT_DIR, "a"}, {unix.DT_DIR, "a-longer-name"}} {
		data = append(data, dirent(d.kind, d.name)...)
	}
	require.Equal(t, []string{"a", "a-longer-name"}, appendDirs(nil, data))
	require.Equal(t, []string{"a"}, appendDirs(nil, data[:len(data)-1]), "a record cut short ends the list")
}

func FuzzAppendDirs(f *testing.F) {
	f.Add(dirent(unix.DT_DIR, "a"))
	f.Add(append(dirent(unix.DT_REG, "x"), dirent(unix.DT_DIR, "bcd")...))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range appendDirs(nil, data) {
			if name == "" || name == "." || name == ".." {
				t.Fatalf("name %q", name)
			}
		}
	})
}

func FuzzParsers(f *testing.F) {
	for _, s := range []string{"populated 1\nfrozen 0\n", "1\n2\n", "max\n", "Tgid:\t12\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, _ = parseEvents(data)
		_, _ = parsePids(data)
		_, _ = parseValue(data)
		_, _ = parseTgid(data)
	})
}
