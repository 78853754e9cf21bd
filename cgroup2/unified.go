package cgroup2

import (
	"maps"
	"slices"
	"strings"

	"vminit/internal/sys"
)

// The files of cgroup core that unified may set. The others would move
// processes (the daemon's, even), stop the container, or change the cgroup
// into one that no process can be started in.
var coreFiles = []string{"cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"}

// planUnified adds the writes of resources.unified, file by file, and drops
// those of writes that it overrides. A value of several lines becomes one
// write for each, as keyed files take one line at a time.
func planUnified(writes []Write, unified map[string]string) ([]Write, error) {
	overridden := func(file string) bool { _, ok := unified[file]; return ok }
	writes = slices.DeleteFunc(writes, func(w Write) bool { return overridden(w.File) })
	for i, w := range writes {
		if w.Else != nil && overridden(w.Else.File) {
			writes[i].Else, writes[i].Optional = nil, true
		}
	}
	for _, file := range slices.Sorted(maps.Keys(unified)) {
		if err := checkFile(file); err != nil {
			return nil, err
		}
		if strings.TrimSpace(unified[file]) == "" {
			// An empty line clears a cpuset. Most other files would take it
			// for a zero.
			if !strings.HasPrefix(file, "cpuset.") {
				return nil, sys.Invalidf("unified: the value of %s is empty", file)
			}
			writes = append(writes, Write{File: file, Value: "\n"})
		}
		for line := range strings.SplitSeq(unified[file], "\n") {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			if err := checkValue("unified: "+file, line); err != nil {
				return nil, err
			}
			writes = append(writes, Write{File: file, Value: line})
		}
	}
	return writes, nil
}

// checkFile accepts CONTROLLER.PARAMETER.
func checkFile(file string) error {
	controller, rest, ok := strings.Cut(file, ".")
	plain := !strings.ContainsFunc(file, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	})
	if !ok || controller == "" || rest == "" || len(file) > 64 || !plain || strings.Contains(file, "..") {
		return sys.Invalidf("unified: %.80q is not of the form CONTROLLER.PARAMETER", file)
	}
	if controller == "cgroup" && !slices.Contains(coreFiles, file) {
		return sys.Invalidf("unified: %s must not be set; of cgroup core only %s may be", file, strings.Join(coreFiles, ", "))
	}
	return nil
}
