package main

import (
	"math"
	"strconv"
	"strings"

	"vminit/internal/sys"
)

// parseMiB reads a size as docker writes it, a number with an optional unit b,
// k, m or g (powers of 1024; bytes without one), in whole MiB, rounded up.
func parseMiB(s string) (int, error) {
	bad := sys.Invalidf("size %q: want a number and a unit, such as 512M or 2G", s)
	number := strings.TrimRight(strings.ToLower(s), "bi")
	shift := 0
	if n := len(number); n > 0 {
		switch number[n-1] {
		case 'k':
			shift = 10
		case 'm':
			shift = 20
		case 'g':
			shift = 30
		}
		if shift > 0 {
			number = number[:n-1]
		}
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || n == 0 || n > math.MaxInt64>>shift {
		return 0, bad
	}
	mib := ((n << shift) + 1<<20 - 1) >> 20
	if mib > 1<<24 { // 16 TiB
		return 0, bad
	}
	return int(mib), nil
}
