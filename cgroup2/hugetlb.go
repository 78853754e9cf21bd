package cgroup2

import (
	"math"
	"os"
	"slices"
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

// HugeTLBStats counts huge pages of one size, in bytes.
type HugeTLBStats struct {
	PageSize     string // 2MB
	Current, Max uint64
	Failures     uint64 // allocations refused by the limit
}

func readHugeTLB(r *statReader, sizes []string) []HugeTLBStats {
	var all []HugeTLBStats
	for _, size := range sizes {
		s := HugeTLBStats{PageSize: size}
		if !r.value("hugetlb."+size+".current", &s.Current) {
			continue
		}
		if r.value("hugetlb."+size+".max", &s.Max) && s.Max >= 1<<62 {
			s.Max = math.MaxUint64 // "max" rounded down to whole huge pages
		}
		r.file("hugetlb."+size+".events", func(data []byte) (err error) {
			s.Failures, err = parseMaxEvent(data)
			return err
		})
		all = append(all, s)
	}
	return all
}

// pageSizes returns the huge page sizes the kernel accounts for, smallest
// first, as they are spelled in file names. They cannot change while it runs.
func (t *Tree) pageSizes() []string {
	t.sizesOnce.Do(func() {
		entries, _ := os.ReadDir("/sys/kernel/mm/hugepages")
		var kilobytes []uint64
		for _, e := range entries {
			size := strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB")
			if kb, err := strconv.ParseUint(size, 10, 64); err == nil {
				kilobytes = append(kilobytes, kb)
			}
		}
		slices.Sort(kilobytes)
		for _, kb := range kilobytes {
			t.sizes = append(t.sizes, pageSizeName(kb))
		}
	})
	return t.sizes
}

// pageSizeName spells a size as hugetlb_cgroup.c's mem_fmt does.
func pageSizeName(kb uint64) string {
	switch {
	case kb >= 1<<20:
		return strconv.FormatUint(kb>>20, 10) + "GB"
	case kb >= 1<<10:
		return strconv.FormatUint(kb>>10, 10) + "MB"
	}
	return strconv.FormatUint(kb, 10) + "KB"
}
