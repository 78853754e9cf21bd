package cgroup2

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
)

// planRDMA plans rdma.max, one line for each device. A limit that is not given
// is left as it is.
func planRDMA(r *specs.LinuxResources) ([]Write, error) {
	var writes []Write
	for _, dev := range slices.Sorted(maps.Keys(r.Rdma)) {
		if dev == "" || len(dev) > 64 || strings.ContainsFunc(dev, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
			return nil, sys.Invalidf("rdma: %.80q is no device name", dev)
		}
		value := dev
		if n := r.Rdma[dev].HcaHandles; n != nil {
			value += fmt.Sprintf(" hca_handle=%d", *n)
		}
		if n := r.Rdma[dev].HcaObjects; n != nil {
			value += fmt.Sprintf(" hca_object=%d", *n)
		}
		if value != dev {
			writes = append(writes, Write{File: "rdma.max", Value: value})
		}
	}
	return writes, nil
}
