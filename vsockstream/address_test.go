package vsockstream

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{
		"vsock://3:1025":                "vsock://3:1025",
		"vsock://any:1025":              "vsock://any:1025",
		"vsock://:1026":                 "vsock://any:1026",
		"vsock://4294967295:1":          "vsock://any:1",
		"vsock://2:0":                   "vsock://2:0",
		"unix:///run/vminit/rpc":        "unix:///run/vminit/rpc",
		"unix:///a%20b?c":               "unix:///a%20b?c",
		"vm+unix:///run/vm/s?port=1025": "vm+unix:///run/vm/s?port=1025",
	} {
		a, err := parseAddress(in)
		require.NoError(t, err, in)
		require.Equal(t, want, a.String(), in)
	}
	for _, in := range []string{
		"", "vsock", "vsock://", "vsock://3", "vsock://x:1", "vsock://-1:1", "vsock://4294967296:1", "vsock://3:x", "vsock://3:4294967296",
		"unix://", "unix://rel", "unix:///" + strings.Repeat("a", 107), "unix:///a\x00b", "tcp://1:2",
		"vm+unix:///a", "vm+unix:///a?port=", "vm+unix:///a?port=0", "vm+unix:///a?port=1&port=2", "vm+unix:///a?port=1&x=2", "vm+unix://a?port=1", "vm+unix:///a?%zz",
	} {
		_, err := parseAddress(in)
		require.ErrorIs(t, err, sys.ErrInvalid, in)
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"vsock://3:1025", "vsock://any:1", "unix:///a", "vm+unix:///a?port=1", "://", "vsock://:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAddress(s)
		if err != nil {
			require.ErrorIs(t, err, sys.ErrInvalid)
			require.Zero(t, a)
			return
		}
		again, err := parseAddress(a.String())
		require.NoError(t, err)
		require.Equal(t, a, again)
	})
}
