package tasksvc

import (
	"bytes"
	"strconv"
)

// maxHomePath leaves room for the NUL in PATH_MAX (linux/limits.h).
const maxHomePath = 4095

// homeInPasswd finds the home directory of the first user with that id in an
// /etc/passwd (passwd(5)), "" if there is none. Malformed lines are skipped; a
// home that is not an absolute path counts as missing.
func homeInPasswd(data []byte, uid uint32) string {
	var number [10]byte
	want := strconv.AppendUint(number[:0], uint64(uid), 10)
	for line := range bytes.Lines(data) {
		line = bytes.TrimRight(line, "\r\n")
		var fields [6][]byte // name, password, uid, gid, full name, home; then the shell
		n := 0
		for more := true; more && n < len(fields); n++ {
			fields[n], line, more = bytes.Cut(line, []byte(":"))
		}
		if n < len(fields) || len(fields[0]) == 0 || !bytes.Equal(fields[2], want) {
			continue
		}
		home := fields[5]
		if len(home) == 0 || home[0] != '/' || len(home) > maxHomePath || bytes.IndexByte(home, 0) >= 0 {
			return ""
		}
		return string(home)
	}
	return ""
}
