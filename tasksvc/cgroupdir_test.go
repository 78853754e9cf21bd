package tasksvc

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCgroupBelow(t *testing.T) {
	for text, want := range map[string]string{
		"0::/vminit/c\n": ".", "0::/vminit/c/init.scope\n": "init.scope", "1:name=x:/\n0::/vminit/c/a/b\n": "a/b",
		"0::/vminit/cc\n": "", "0::/\n": "", "0::/vminit\n": "", "": "", "0::/../vminit/c\n": "", "1:cpu:/vminit/c\n": "",
	} {
		below, err := cgroupBelow([]byte(text), "/vminit/c")
		require.Equal(t, want, below, "%q", text)
		require.Equal(t, want == "", err != nil, "%q: %v", text, err)
	}
}

// FuzzCgroupBelow: the text is the kernel's, the names in it the container's.
func FuzzCgroupBelow(f *testing.F) {
	f.Add("0::/vminit/c/a\n")
	f.Add("0::/vminit/c//\n0::\n")
	f.Fuzz(func(t *testing.T, text string) {
		below, err := cgroupBelow([]byte(text), "/vminit/c")
		if (below == "") != (err != nil) || strings.HasPrefix(below, "/") {
			t.Fatalf("%q, %v", below, err)
		}
	})
}
