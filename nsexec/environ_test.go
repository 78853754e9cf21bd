package nsexec

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEnviron(t *testing.T) {
	for name, x := range map[string]struct {
		env  []string
		home string
		want string
	}{
		"none":    {nil, "", `[]`},
		"added":   {[]string{"A=1"}, "/root", `["A=1", "HOME=/root"]`},
		"theirs":  {[]string{"HOME=/x", "A=1"}, "/root", `["HOME=/x", "A=1"]`},
		"empty":   {[]string{"HOME=", "A=1"}, "/root", `["A=1", "HOME=/root"]`},
		"unknown": {[]string{"HOME="}, "", `["HOME="]`},
		"alike":   {[]string{"HOMES=x"}, "/", `["HOMES=x", "HOME=/"]`},
	} {
		p, err := NewProgram()
		require.NoError(t, err)
		got := p.environ(x.env, x.home)
		require.NoError(t, p.Err())
		require.Equal(t, x.want, p.value('v', got.v), name)
		require.NoError(t, p.SetHome("/somewhere/else"))
		want := x.want
		if x.home != "" {
			want = strings.ReplaceAll(want, "HOME="+x.home+`"`, `HOME=/somewhere/else"`)
		}
		require.Equal(t, want, p.value('v', got.v), name)
		if x.home != "" && NeedsHome(x.env) {
			require.Error(t, p.SetHome("/"+strings.Repeat("x", maxHome)))
			require.Error(t, p.SetHome("/\x00"))
			require.NoError(t, p.SetHome("/"+strings.Repeat("x", maxHome-2)))
		}
		require.NoError(t, p.Close())
	}
}
