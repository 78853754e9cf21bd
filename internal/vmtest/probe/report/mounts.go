package report

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

func (r *Report) mounts() {
	for line := range strings.Lines(r.text("mounts", "/proc/self/mountinfo")) {
		m, err := parseMount(strings.TrimSuffix(line, "\n"))
		if err != nil {
			r.fail("mounts", err)
			continue
		}
		r.Mounts = append(r.Mounts, m)
	}
}

// parseMount reads a line of mountinfo (proc_pid_mountinfo(5)).
func parseMount(line string) (Mount, error) {
	left, right, ok := strings.Cut(line, " - ")
	l, rt := strings.Fields(left), strings.SplitN(right, " ", 3)
	if !ok || len(l) < 6 || len(rt) < 3 {
		return Mount{}, fmt.Errorf("mountinfo line %q has too few fields", line)
	}
	m := Mount{Dev: l[2], Root: unescape(l[3]), Target: unescape(l[4]), Options: strings.Split(l[5], ","),
		Optional: l[6:], Type: unescape(rt[0]), Source: unescape(rt[1]), Super: strings.Split(rt[2], ","), Raw: line}
	var err1, err2 error
	m.ID, err1 = strconv.Atoi(l[0])
	m.Parent, err2 = strconv.Atoi(l[1])
	if err1 != nil || err2 != nil {
		return Mount{}, fmt.Errorf("mountinfo line %q has no ids", line)
	}
	return m, nil
}

// unescape undoes \040 and the like.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// maxFile bounds what is read of one cgroup file.
const maxFile = 4096

func (r *Report) cgroup() {
	const root = "/sys/fs/cgroup"
	c := &r.Cgroup
	c.Files = make(map[string]string)
	c.Raw = r.text("cgroup", "/proc/self/cgroup")
	for line := range strings.Lines(c.Raw) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			c.Path = p
		}
	}
	var fs unix.Statfs_t
	if unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return
	}
	c.Visible = true
	c.Writable = fs.Flags&unix.ST_RDONLY == 0
	// Without a cgroup namespace the path may lead outside what is mounted.
	dir := path.Join(root, c.Path)
	if _, err := os.Stat(path.Join(dir, "cgroup.procs")); err != nil {
		dir = root
	}
	files, _ := filepath.Glob(dir + "/*.*")
	for _, f := range files {
		if s, ok := readSmall(f); ok {
			c.Files[path.Base(f)] = s
		}
	}
}

func readSmall(p string) (string, bool) {
	f, err := os.Open(p)
	if err != nil {
		return "", false
	}
	defer f.Close()
	buf := make([]byte, maxFile)
	n, err := f.Read(buf)
	if err != nil && n == 0 {
		st, serr := f.Stat()
		return "", serr == nil && st.Mode().IsRegular()
	}
	return strings.TrimSpace(string(buf[:n])), true
}
