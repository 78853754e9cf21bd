package cgroup2

import (
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
)

// planHugeTLB plans hugetlb.SIZE.max and, since the specification prefers
// limits on reservations, hugetlb.SIZE.rsvd.max (Linux 5.7).
func planHugeTLB(r *specs.LinuxResources) ([]Write, error) {
	var writes []Write
	for _, l := range r.HugepageLimits {
		if !isPageSize(l.Pagesize) {
			return nil, sys.Invalidf("hugepageLimits: page size is %.40q, must be like 64KB, 2MB or 1GB", l.Pagesize)
		}
		limit := strconv.FormatUint(l.Limit, 10)
		writes = append(writes,
			Write{File: "hugetlb." + l.Pagesize + ".max", Value: limit},
			Write{File: "hugetlb." + l.Pagesize + ".rsvd.max", Value: limit, Optional: true})
	}
	return writes, nil
}

// isPageSize accepts what the kernel puts into file names: a number and KB, MB
// or GB.
func isPageSize(s string) bool {
	if len(s) < 3 || len(s) > 8 {
		return false
	}
	number, unit := s[:len(s)-2], s[len(s)-2:]
	return strings.Trim(number, "0123456789") == "" && number[0] != '0' &&
		(unit == "KB" || unit == "MB" || unit == "GB")
}
