package tasksvc

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHomeInPasswd(t *testing.T) {
	const file = "root:x:0:0:root:/root:/bin/sh\n" +
		"# a comment\n" +
		"\n" +
		"+::::::\n" +
		"broken:x:7\n" +
		":x:8:8::/nameless:/bin/sh\n" +
		"bin:*:2:2::/bin\r\n" +
		"user:x:1000:1000:A User,,,:/home/user:/bin/sh:more\n" +
		"again:x:1000:1000::/home/again:/bin/sh\n" +
		"relative:x:11:11::home:/bin/sh\n" +
		"none:x:12:12:::/bin/sh\n" +
		"nul:x:13:13::/a\x00b:/bin/sh\n" +
		"zero:x:014:14::/octal:/bin/sh\n" +
		"last:x:4294967294:0::/last"
	for uid, want := range map[uint32]string{0: "/root", 2: "/bin", 7: "", 8: "", 1000: "/home/user", 11: "", 12: "", 13: "", 14: "", 4294967294: "/last", 99: ""} {
		require.Equal(t, want, homeInPasswd([]byte(file), uid), "uid %d", uid)
	}
	long := "a:x:1:1::/" + strings.Repeat("x", maxHomePath) + ":/bin/sh"
	require.Empty(t, homeInPasswd([]byte(long), 1))
	require.Empty(t, homeInPasswd(nil, 0))
}

func FuzzPasswd(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/sh\n"), uint32(0))
	f.Add([]byte("+:::\n::::::::\nu:x:5:5::/h"), uint32(5))
	f.Fuzz(func(t *testing.T, data []byte, uid uint32) {
		home := homeInPasswd(data, uid)
		if home != "" && (home[0] != '/' || len(home) > maxHomePath || strings.ContainsAny(home, "\x00\n:")) {
			t.Errorf("%q", home)
		}
	})
}
