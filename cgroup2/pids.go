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
