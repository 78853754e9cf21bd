package tasksvc

import (
	"strconv"
	"strings"

	"vminit/internal/sys"
)

// The versions of the runtime specification that are understood: those with
// this major and a minor from 0 to this.
const (
	specMajor    = 1
	maxSpecMinor = 3
)

// checkVersion checks ociVersion, which is a semantic version (semver.org,
// 2.0.0). Patch level, pre-release (-rc.1, -dev) and build do not matter.
func checkVersion(version string) error {
	if version == "" {
		return sys.Invalidf("ociVersion is missing")
	}
	major, minor, ok := parseVersion(version)
	if !ok {
		return sys.Invalidf("ociVersion %.64q is not a semantic version", version)
	}
	if major != specMajor || minor > maxSpecMinor {
		return sys.Invalidf("ociVersion %.64s is not supported: %d.0 to %d.%d are", version, specMajor, specMajor, maxSpecMinor)
	}
	return nil
}

func parseVersion(version string) (major, minor int, ok bool) {
	version, build, hasBuild := strings.Cut(version, "+")
	core, pre, hasPre := strings.Cut(version, "-")
	if hasBuild && !isSuffix(build, false) || hasPre && !isSuffix(pre, true) {
		return 0, 0, false
	}
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return 0, 0, false
	}
	var n [3]int
	for i, part := range parts {
		var err error
		if n[i], err = strconv.Atoi(part); err != nil || strconv.Itoa(n[i]) != part || n[i] < 0 {
			return 0, 0, false
		}
	}
	return n[0], n[1], true
}

// isSuffix checks dot-separated identifiers; in a pre-release numbers have no
// leading zeros.
func isSuffix(s string, pre bool) bool {
	for id := range strings.SplitSeq(s, ".") {
		digits := strings.Trim(id, "0123456789") == ""
		if id == "" || pre && digits && len(id) > 1 && id[0] == '0' {
			return false
		}
		for i := range len(id) {
			if c := id[i]; !('0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '-') {
				return false
			}
		}
	}
	return true
}
