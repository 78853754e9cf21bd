package cgroup2

import (
	"bytes"
	"fmt"
)

// Pressure is one pressure file: how much time was lost waiting for a
// resource (Documentation/accounting/psi.rst).
type Pressure struct {
	Some PressureLine // at least one task was waiting
	Full PressureLine // all tasks were; zero for cpu before Linux 5.13
}

// PressureLine has the share of time, in percent, over the last 10, 60 and 300
// seconds, and the sum of it in microseconds.
type PressureLine struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

func parsePressure(data []byte) (Pressure, error) {
	var p Pressure
	err := eachLine(data, func(line []byte) error {
		var into *PressureLine
		kind, rest, _ := bytes.Cut(line, []byte(" "))
		switch string(kind) {
		case "some":
			into = &p.Some
		case "full":
			into = &p.Full
		default:
			return nil
		}
		return eachPair(rest, func(key, value []byte) (err error) {
			switch string(key) {
			case "avg10":
				into.Avg10, err = parsePercent(value)
			case "avg60":
				into.Avg60, err = parsePercent(value)
			case "avg300":
				into.Avg300, err = parsePercent(value)
			case "total":
				into.Total, err = parseUint(value)
			}
			return err
		})
	})
	return p, err
}

// parsePercent decodes "12.34". The kernel never prints any other form.
func parsePercent(s []byte) (float64, error) {
	whole, frac, _ := bytes.Cut(s, []byte("."))
	if len(whole) > 3 || len(frac) != 2 || string(whole) == "max" {
		return 0, fmt.Errorf("%.40q is no percentage", s)
	}
	n, err1 := parseUint(whole)
	f, err2 := parseUint(frac)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%.40q is no percentage", s)
	}
	return float64(n*100+f) / 100, nil
}

// pressure reads one pressure file, nil if there is none.
func (r *statReader) pressure(name string) *Pressure {
	var p Pressure
	if !r.file(name, func(data []byte) (err error) {
		p, err = parsePressure(data)
		return err
	}) {
		return nil
	}
	return &p
}
