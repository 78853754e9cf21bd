package cgroup2

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
)

// Kernel text comes in three forms: one value; "KEY VALUE" lines (flat keyed);
// and "NAME KEY=VALUE KEY=VALUE" lines (nested keyed). What follows decodes
// them; each takes the whole file and fails on anything it cannot make sense
// of, except keys it does not know, which newer kernels add.

// parseUint decodes a decimal number; "max" is math.MaxUint64.
func parseUint(s []byte) (uint64, error) {
	if string(s) == "max" {
		return math.MaxUint64, nil
	}
	if len(s) == 0 || len(s) > 20 {
		return 0, fmt.Errorf("%.40q is no number", s)
	}
	var n uint64
	for _, d := range s {
		if d < '0' || d > '9' {
			return 0, fmt.Errorf("%.40q is no number", s)
		}
		if n > (math.MaxUint64-uint64(d-'0'))/10 {
			return 0, fmt.Errorf("%.40q is out of range", s)
		}
		n = n*10 + uint64(d-'0')
	}
	return n, nil
}

// parseValue decodes a file that holds one number, or "max".
func parseValue(data []byte) (uint64, error) { return parseUint(bytes.TrimSpace(data)) }

// eachKey calls fn for each line of a flat keyed file.
func eachKey(data []byte, fn func(key []byte, value uint64)) error {
	return eachLine(data, func(line []byte) error {
		key, rest, _ := bytes.Cut(line, []byte(" "))
		value, err := parseUint(bytes.TrimSpace(rest))
		if err != nil {
			return fmt.Errorf("key %.40q: %w", key, err)
		}
		fn(key, value)
		return nil
	})
}

// eachLine calls fn for each line that is not blank, until it fails.
func eachLine(data []byte, fn func(line []byte) error) error {
	for line := range bytes.Lines(data) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			if err := fn(line); err != nil {
				return err
			}
		}
	}
	return nil
}

// parsePids decodes cgroup.procs or cgroup.threads, leaving out the zeros that
// stand for processes outside the reader's pid namespace.
func parsePids(data []byte) ([]int, error) {
	var pids []int
	err := eachLine(data, func(line []byte) error {
		pid, err := strconv.ParseInt(string(line), 10, 32)
		if err != nil || pid < 0 {
			return fmt.Errorf("%.40q is no process id", line)
		}
		if pid > 0 {
			pids = append(pids, int(pid))
		}
		return nil
	})
	return pids, err
}

// eachPair calls fn for each KEY=VALUE word of a line.
func eachPair(line []byte, fn func(key, value []byte) error) error {
	for word := range bytes.FieldsSeq(line) {
		key, value, ok := bytes.Cut(word, []byte("="))
		if !ok {
			return fmt.Errorf("%.40q is not of the form KEY=VALUE", word)
		}
		if err := fn(key, value); err != nil {
			return fmt.Errorf("key %.40q: %w", key, err)
		}
	}
	return nil
}
