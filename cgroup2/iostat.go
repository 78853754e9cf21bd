package cgroup2

import (
	"bytes"
	"fmt"
)

// IOStats is io.stat and io.pressure.
type IOStats struct {
	Usage []IOEntry
	PSI   *Pressure
}

// IOEntry counts what was read, written and discarded on one block device.
type IOEntry struct {
	Major, Minor           uint64
	RBytes, WBytes, DBytes uint64
	RIOs, WIOs, DIOs       uint64
}

// parseIOStat decodes io.stat. Some kernels (6.1 among them) print the number
// of a device that has seen no I/O without a line of its own, as in
// "254:1 254:0 rbytes=0 ...", and some print a line with nothing but the
// number: a device without a single counter is left out.
func parseIOStat(data []byte) ([]IOEntry, error) {
	var entries []IOEntry
	err := eachLine(data, func(line []byte) error {
		var e IOEntry
		counters := 0
		for word := range bytes.FieldsSeq(line) {
			key, value, isPair := bytes.Cut(word, []byte("="))
			if !isPair {
				if counters > 0 {
					entries = append(entries, e)
				}
				var err error
				e, counters = IOEntry{}, 0
				if e.Major, e.Minor, err = parseDevice(word); err != nil {
					return err
				}
				continue
			}
			if field := e.field(key); field != nil {
				n, err := parseUint(value)
				if err != nil {
					return fmt.Errorf("key %.40q: %w", key, err)
				}
				*field = n
				counters++
			}
		}
		if counters > 0 {
			entries = append(entries, e)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return entries, nil
}

func (e *IOEntry) field(key []byte) *uint64 {
	switch string(key) {
	case "rbytes":
		return &e.RBytes
	case "wbytes":
		return &e.WBytes
	case "dbytes":
		return &e.DBytes
	case "rios":
		return &e.RIOs
	case "wios":
		return &e.WIOs
	case "dios":
		return &e.DIOs
	}
	return nil
}

// parseDevice decodes MAJOR:MINOR.
func parseDevice(word []byte) (major, minor uint64, err error) {
	a, b, ok := bytes.Cut(word, []byte(":"))
	major, err1 := parseUint(a)
	minor, err2 := parseUint(b)
	if !ok || err1 != nil || err2 != nil {
		return 0, 0, fmt.Errorf("%.40q is no device number", word)
	}
	return major, minor, nil
}

func readIO(r *statReader) *IOStats {
	var s IOStats
	if !r.file("io.stat", func(data []byte) (err error) {
		s.Usage, err = parseIOStat(data)
		return err
	}) {
		return nil
	}
	s.PSI = r.pressure("io.pressure")
	return &s
}
