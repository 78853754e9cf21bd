package cgroup2

import (
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
)

// planCpuset plans cpuset.cpus and cpuset.mems. What a list means is for the
// kernel to judge.
func planCpuset(r *specs.LinuxResources) ([]Write, error) {
	if r.CPU == nil {
		return nil, nil
	}
	var writes []Write
	for _, set := range []struct{ field, file, list string }{
		{"cpu.cpus", "cpuset.cpus", r.CPU.Cpus},
		{"cpu.mems", "cpuset.mems", r.CPU.Mems},
	} {
		if set.list == "" {
			continue
		}
		if err := checkValue(set.field, set.list); err != nil {
			return nil, err
		}
		writes = append(writes, Write{File: set.file, Value: set.list})
	}
	return writes, nil
}

// maxValue is what one write to a cgroup file can carry: less than a page.
const maxValue = 4095

// checkValue refuses text that cannot be one line of one write.
func checkValue(field, value string) error {
	if len(value) > maxValue {
		return sys.Invalidf("%s has %d bytes, more than %d", field, len(value), maxValue)
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return sys.Invalidf("%s is %.40q: it has a control character", field, value)
	}
	return nil
}
