package boot

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseCmdline(t *testing.T) {
	tests := []struct {
		line string
		want []Param
	}{
		{"", nil},
		{"\n", nil},
		{"quiet console=ttyS0,115200\n", []Param{{"quiet", ""}, {"console", "ttyS0,115200"}}},
		{"a=b=c  d=", []Param{{"a", "b=c"}, {"d", ""}}},
		{`dyndbg="file x +p" "spaced word" "k=v w" last`,
			[]Param{{"dyndbg", "file x +p"}, {"spaced word", ""}, {"k", "v w"}, {"last", ""}}},
		{"panic=1 -- -debug ip=10.0.0.1", []Param{{"panic", "1"}}},
		{`open="never closed x`, []Param{{"open", "never closed x"}}},
		{"ip=a ip=b", []Param{{"ip", "a"}, {"ip", "b"}}},
	}
	for _, tt := range tests {
		require.Equal(t, tt.want, ParseCmdline(tt.line), "%q", tt.line)
	}
	require.Equal(t, []string{"a", "b"}, Values(ParseCmdline("ip=a x ip=b"), "ip"))
}

func FuzzParseCmdline(f *testing.F) {
	f.Add(`BOOT_IMAGE=/vmlinuz root="a b" -- init`)
	f.Fuzz(func(t *testing.T, line string) {
		total := 0
		for _, p := range ParseCmdline(line) {
			total += len(p.Key) + len(p.Value)
			if strings.Contains(p.Key, "=") {
				t.Errorf("key %q of %q", p.Key, line)
			}
		}
		if total > len(line) {
			t.Errorf("parameters of %q are longer than it", line)
		}
	})
}
