package nsexec

import (
	"strconv"
	"strings"

	"vminit/internal/sys"
)

// maxList is room for every other of 8192 CPUs. Ranges that overlap take time.
const maxList = 64 << 10

// parseList reads a list of CPUs or memory nodes as a bit mask: decimal numbers
// and ranges, "0-3,7" (cpuset(7), "List format"). Blanks and empty elements are
// fine, as for the kernel; numbers from limit on are not.
func parseList(list string, limit int) ([]uint64, error) {
	if len(list) > maxList {
		return nil, sys.Invalidf("list %.64q... is longer than %d bytes", list, maxList)
	}
	mask := []uint64{}
	for element := range strings.SplitSeq(list, ",") {
		element = strings.TrimSpace(element)
		if element == "" {
			continue
		}
		first, last, isRange := strings.Cut(element, "-")
		if !isRange {
			last = first
		}
		lo, err1 := strconv.ParseUint(strings.TrimSpace(first), 10, 32)
		hi, err2 := strconv.ParseUint(strings.TrimSpace(last), 10, 32)
		if err1 != nil || err2 != nil || lo > hi {
			return nil, sys.Invalidf("%q in list %.64q is neither a number nor a range", element, list)
		}
		if hi >= uint64(limit) {
			return nil, sys.Invalidf("%d in list %.64q is more than %d, the largest there can be", hi, list, limit-1)
		}
		for n := lo; n <= hi; n++ {
			for int(n/64) >= len(mask) {
				mask = append(mask, 0)
			}
			mask[n/64] |= 1 << (n % 64)
		}
	}
	if len(mask) == 0 {
		return nil, sys.Invalidf("list %.64q is empty", list)
	}
	return mask, nil
}
