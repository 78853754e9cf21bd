package tasksvc

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

func TestMakeEtcFiles(t *testing.T) {
	bundle := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bundle, "hosts"), []byte("the host's\n"), 0o600))
	spec := &specs.Spec{Hostname: "box", Mounts: []specs.Mount{
		{Destination: "/etc/resolv.conf", Source: "resolv.conf"},
		{Destination: "/etc/hosts", Source: "hosts"},
		{Destination: "/etc/hostname", Source: filepath.Join(bundle, "hostname")},
		{Destination: "/etc/hostname2", Source: "./hostname"},
		{Destination: "/x", Source: "/etc/resolv.conf"},
		{Destination: "/y", Source: "../hostname"},
		{Destination: "/proc", Source: "proc", Type: "proc"},
	}}
	var back undo
	require.NoError(t, makeEtcFiles(bundle, spec, &back))
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(bundle, name))
		require.NoError(t, err)
		return string(b)
	}
	require.Equal(t, "box\n", read("hostname"))
	require.Equal(t, "the host's\n", read("hosts"))
	want, _ := os.ReadFile(guestResolvConf)
	require.Equal(t, string(want), read("resolv.conf"))
	entries, err := os.ReadDir(bundle)
	require.NoError(t, err)
	require.Len(t, entries, 3)

	back.run()
	entries, err = os.ReadDir(bundle)
	require.NoError(t, err)
	require.Len(t, entries, 1, "what the host made stays")

	text, err := etcFile("hosts", "box")
	require.NoError(t, err)
	require.Contains(t, text, "127.0.1.1\tbox\n")
	_, err = etcFile("hosts", "a b\n10.0.0.1 evil")
	require.Error(t, err)
}
