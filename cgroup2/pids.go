package cgroup2

import (
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// planPids plans pids.max. A limit of 0 is a real one since runtime-spec 1.3;
// it is written as 1, as runc does, which allows the container's init and
// nothing more.
func planPids(r *specs.LinuxResources) ([]Write, error) {
	if r.Pids == nil || r.Pids.Limit == nil {
		return nil, nil
	}
	value := "max"
	if limit := *r.Pids.Limit; limit >= 0 {
		value = strconv.FormatInt(max(limit, 1), 10)
	}
	return []Write{{File: "pids.max", Value: value}}, nil
}

// PidsStats counts tasks: processes and threads.
type PidsStats struct {
	Current, Limit uint64
	Peak           uint64 // most there ever were (Linux 6.1)
	Failures       uint64 // forks refused by pids.max
}

func readPids(r *statReader) *PidsStats {
	var s PidsStats
	if !r.value("pids.current", &s.Current) {
		return nil
	}
	r.value("pids.max", &s.Limit)
	r.value("pids.peak", &s.Peak)
	r.file("pids.events", func(data []byte) (err error) {
		s.Failures, err = parseMaxEvent(data)
		return err
	})
	return &s
}

// parseMaxEvent decodes an events file whose key "max" counts how often the
// limit was hit.
func parseMaxEvent(data []byte) (hits uint64, err error) {
	err = eachKey(data, func(key []byte, value uint64) {
		if string(key) == "max" {
			hits = value
		}
	})
	return hits, err
}
