package cgroup2

import (
	"bytes"
	"fmt"
	"maps"
	"math"
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

// RDMAStats is rdma.current and rdma.max.
type RDMAStats struct {
	Current, Limit []RDMAEntry
}

// RDMAEntry has the resources of one device; math.MaxUint32 is "max".
type RDMAEntry struct {
	Device                 string
	HCAHandles, HCAObjects uint32
}

func parseRDMA(data []byte) ([]RDMAEntry, error) {
	var entries []RDMAEntry
	err := eachLine(data, func(line []byte) error {
		dev, rest, _ := bytes.Cut(line, []byte(" "))
		e := RDMAEntry{Device: string(dev)}
		if err := eachPair(rest, func(key, value []byte) error {
			n, err := parseUint(value)
			switch string(key) {
			case "hca_handle":
				e.HCAHandles = uint32(min(n, math.MaxUint32))
			case "hca_object":
				e.HCAObjects = uint32(min(n, math.MaxUint32))
			}
			return err
		}); err != nil {
			return err
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

func readRDMA(r *statReader) *RDMAStats {
	var s RDMAStats
	if !r.file("rdma.current", func(data []byte) (err error) {
		s.Current, err = parseRDMA(data)
		return err
	}) {
		return nil
	}
	r.file("rdma.max", func(data []byte) (err error) {
		s.Limit, err = parseRDMA(data)
		return err
	})
	return &s
}
