package tasksvc

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// rdtGroup is the place of a container in resctrl, the file system of Intel's
// Resource Director Technology (the kernel's Documentation/filesystems/resctrl.rst;
// config-linux.md, "IntelRdt"). Few guests see it.
type rdtGroup struct {
	tasks  []string // files its processes' pids are written to
	remove []string // directories that are its own, the inner ones first
}

// resctrl is a mounted resctrl file system.
type resctrl struct {
	root  string
	mkdir func(dir string) error // os.Mkdir; the kernel fills the directory
}

// findResctrl looks for one in the guest.
func findResctrl() (resctrl, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return resctrl{}, err
	}
	for line := range bytes.Lines(mounts) {
		before, after, _ := bytes.Cut(line, []byte(" - "))
		if f := bytes.Fields(before); len(f) > 4 && bytes.HasPrefix(after, []byte("resctrl ")) {
			return resctrl{string(f[4]), func(dir string) error { return os.Mkdir(dir, 0o755) }}, nil
		}
	}
	return resctrl{}, sys.Unsupportedf("linux.intelRdt: no resctrl file system is mounted in the guest")
}

// rdtSchemata are the lines for the schemata file, in the order the spec says.
func rdtSchemata(c *specs.LinuxIntelRdt) ([]string, error) {
	var lines []string
	if c.L3CacheSchema != "" {
		lines = append(lines, c.L3CacheSchema)
	}
	if c.MemBwSchema != "" {
		if !strings.HasPrefix(c.MemBwSchema, "MB:") {
			return nil, sys.Invalidf("linux.intelRdt.memBwSchema %.64q does not start with MB:", c.MemBwSchema)
		}
		lines = append(lines, c.MemBwSchema)
	}
	lines = append(lines, c.Schemata...)
	for _, l := range lines {
		if l == "" || strings.Contains(l, "\n") {
			return nil, sys.Invalidf("linux.intelRdt: %.64q is not one line of a schema", l)
		}
	}
	return lines, nil
}

// group finds or makes the container's group. What was made is taken back if
// something fails.
func (r resctrl) group(id string, c *specs.LinuxIntelRdt) (g *rdtGroup, err error) {
	lines, err := rdtSchemata(c)
	if err != nil {
		return nil, err
	}
	dir, err := r.dir(id, c.ClosID)
	if err != nil {
		return nil, err
	}
	g = &rdtGroup{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("linux.intelRdt: %w", err), g.release())
			g = nil
		}
	}()
	_, statErr := os.Stat(dir)
	switch {
	case c.ClosID == "" && statErr == nil:
		return g, sys.Mark(sys.ErrExists, fmt.Errorf("group %s exists already", dir))
	case c.ClosID == "" || statErr != nil && len(lines) > 0:
		if err := r.mkdir(dir); err != nil {
			return g, err
		}
		if c.ClosID == "" {
			g.remove = []string{dir}
		}
		for _, l := range lines {
			if err := r.write(filepath.Join(dir, "schemata"), l); err != nil {
				return g, err
			}
		}
	case statErr != nil:
		return g, sys.Mark(sys.ErrNotFound, fmt.Errorf("closID %s: there is no such group, and no schema to make it of", c.ClosID))
	default:
		if err := matchSchemata(dir, lines); err != nil {
			return g, err
		}
	}
	g.tasks = []string{filepath.Join(dir, "tasks")}
	if c.EnableMonitoring {
		mon := filepath.Join(dir, "mon_groups", id)
		if err := r.mkdir(mon); err != nil {
			return g, fmt.Errorf("enableMonitoring: %w", err)
		}
		g.remove = append([]string{mon}, g.remove...)
		g.tasks = append(g.tasks, filepath.Join(mon, "tasks"))
	}
	return g, nil
}

// dir is the directory of a class of service.
func (r resctrl) dir(id, closID string) (string, error) {
	switch closID {
	case "":
		return filepath.Join(r.root, id), nil
	case "/":
		return r.root, nil
	case ".", "..", "info", "mon_groups", "mon_data":
	default:
		if !strings.ContainsAny(closID, "/\x00\n") && len(closID) <= unix.NAME_MAX {
			return filepath.Join(r.root, closID), nil
		}
	}
	return "", sys.Invalidf("linux.intelRdt.closID %.64q is not the name of a group", closID)
}

// write writes one line and, if the kernel refuses it, says what it says.
func (r resctrl) write(file, line string) error {
	err := appendLine(file, line)
	if err == nil {
		return nil
	}
	if why, readErr := os.ReadFile(filepath.Join(r.root, "info/last_cmd_status")); readErr == nil && len(why) > 0 {
		return fmt.Errorf("write %q: %w (%.200s)", line, err, bytes.TrimSpace(why))
	}
	return fmt.Errorf("write %q: %w", line, err)
}

// appendLine writes to a file of the kernel's, which must exist.
func appendLine(file, line string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(line + "\n"); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// matchSchemata refuses a group whose limits are not those asked for.
func matchSchemata(dir string, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(dir, "schemata"))
	if err != nil {
		return err
	}
	have := map[string]string{}
	for line := range strings.Lines(string(data)) {
		for key, value := range schemaValues(line) {
			have[key] = value
		}
	}
	for _, line := range lines {
		for key, value := range schemaValues(line) {
			if have[key] != value {
				return sys.Mark(sys.ErrState, fmt.Errorf("group %s exists and has %s=%s, not %s", dir, key, have[key], value))
			}
		}
	}
	return nil
}

// schemaValues takes a line such as "L3:0=7f0;1=1f" apart: L3:0 is 7f0.
func schemaValues(line string) map[string]string {
	values := map[string]string{}
	resource, list, _ := strings.Cut(strings.TrimSpace(line), ":")
	for entry := range strings.SplitSeq(list, ";") {
		domain, value, _ := strings.Cut(entry, "=")
		value = strings.ToLower(strings.TrimSpace(value))
		if short := strings.TrimLeft(value, "0"); short != "" {
			value = short
		}
		values[resource+":"+strings.TrimSpace(domain)] = value
	}
	return values
}

// release removes what is the container's own. It may be called again.
func (g *rdtGroup) release() error {
	if g == nil {
		return nil
	}
	for len(g.remove) > 0 {
		if err := os.Remove(g.remove[0]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("linux.intelRdt: %w", err)
		}
		g.remove = g.remove[1:]
	}
	return nil
}

// taskFiles are where pids of the container's processes go; a nil group has none.
func (g *rdtGroup) taskFiles() []string {
	if g == nil {
		return nil
	}
	return g.tasks
}
