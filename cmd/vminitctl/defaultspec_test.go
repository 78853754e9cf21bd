package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"vminit/internal/rootimage"
	"vminit/internal/sys"
)

func golden(t *testing.T, name string, got any) {
	t.Helper()
	text, err := json.MarshalIndent(got, "", "  ")
	require.NoError(t, err)
	path := filepath.Join("testdata", name+".golden.json")
	if *update {
		require.NoError(t, os.WriteFile(path, append(text, '\n'), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), string(text)+"\n", "go test -update rewrites it")
}

func TestDefaultSpec(t *testing.T) {
	golden(t, "spec-default", defaultSpec("default", "c1"))
}

func TestProcessOptions(t *testing.T) {
	t.Setenv("FROM_HERE", "x=y")
	spec := defaultSpec("ns", "c1")
	o := processOptions{
		args: []string{"sh", "-c", "true"}, env: []string{"PATH=/bin", "FROM_HERE", "NOT_SET_ANYWHERE"},
		user: "alice", cwd: "/srv/../tmp", tty: true, size: &specs.Box{Width: 80, Height: 24},
	}
	require.NoError(t, o.apply(spec.Process, &userFiles{passwd: []byte("alice:x:7:8::/home/alice:/bin/sh\n"), group: []byte("g:x:9:alice\n")}))
	golden(t, "process-all", spec.Process)

	for name, bad := range map[string]processOptions{
		"no command":   {},
		"relative cwd": {args: []string{"x"}, cwd: "tmp"},
		"empty name":   {args: []string{"x"}, env: []string{"=x"}},
		"NUL":          {args: []string{"x"}, env: []string{"A=\x00"}},
		"no such user": {args: []string{"x"}, user: "bob"},
	} {
		require.ErrorIs(t, bad.apply(defaultSpec("ns", "c1").Process, nil), sys.ErrInvalid, name)
	}
}

func TestAssemble(t *testing.T) {
	root := &image{fsType: rootimage.EROFS, mode: 0o755}
	shares := []*share{
		{source: "/src", target: "/copy", readOnly: true, image: &image{fsType: rootimage.Ext4}},
		{source: "/src", target: "/live", tag: "share1"},
		{source: "/src", target: "/file", tag: "share2", name: "f", readOnly: true},
	}
	mounts, binds, err := assemble("c1", root, shares, []string{"/dev/vda", "/dev/vdb"})
	require.NoError(t, err)
	golden(t, "assemble", struct {
		Rootfs []*types.Mount
		Binds  []specs.Mount
	}{mounts, binds})
	_, _, err = assemble("c1", &image{fsType: "zfs"}, nil, []string{"/dev/vda"})
	require.ErrorIs(t, err, sys.ErrUnsupported)
}

func TestReadBundle(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600))
	}
	_, _, err := readBundle(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	write(`{"process": {"args": ["x"]}, "root": {"path": "root"}}`)
	_, root, err := readBundle(dir)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "root"), root)
	write(`{"process": {}, "root": {"path": "/abs"}}`)
	_, root, err = readBundle(dir)
	require.NoError(t, err)
	require.Equal(t, "/abs", root)
	for _, bad := range []string{"", "{", `{"root": {"path": "/"}}`} {
		write(bad)
		_, _, err = readBundle(dir)
		require.Error(t, err, bad)
	}
	require.NoError(t, os.Truncate(filepath.Join(dir, "config.json"), maxConfig+1))
	_, _, err = readBundle(dir)
	require.ErrorIs(t, err, sys.ErrInvalid)
}
