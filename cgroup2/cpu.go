package cgroup2

import (
	"math"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
)

// planCPU plans cpu.idle, cpu.max, cpu.max.burst (Linux 5.14) and cpu.weight.
// A quota alone leaves the period as it is (at first 100 ms); a period alone
// means no quota.
func planCPU(r *specs.LinuxResources) ([]Write, error) {
	c := r.CPU
	if c == nil {
		return nil, nil
	}
	if deref(c.RealtimeRuntime) != 0 || deref(c.RealtimePeriod) != 0 {
		return nil, sys.Unsupportedf("cpu.realtimeRuntime and cpu.realtimePeriod: cgroup v2 cannot share out realtime scheduling")
	}
	var writes []Write
	idle := false
	if c.Idle != nil { // Linux 5.15
		if *c.Idle != 0 && *c.Idle != 1 {
			return nil, sys.Invalidf("cpu.idle is %d, must be 0 or 1", *c.Idle)
		}
		idle = *c.Idle == 1
		writes = append(writes, Write{File: "cpu.idle", Value: strconv.FormatInt(*c.Idle, 10)})
	}
	// An idle cgroup has the least weight there is; the kernel refuses another.
	if weight := weightFromShares(deref(c.Shares)); weight != 0 && !idle {
		writes = append(writes, Write{File: "cpu.weight", Value: strconv.FormatUint(weight, 10)})
	}
	quota, period := deref(c.Quota), deref(c.Period)
	if quota != 0 || period != 0 {
		value := "max"
		if quota > 0 {
			value = strconv.FormatInt(quota, 10)
		}
		if period != 0 {
			value += " " + strconv.FormatUint(period, 10)
		}
		writes = append(writes, Write{File: "cpu.max", Value: value})
	}
	if c.Burst != nil {
		writes = append(writes, Write{File: "cpu.max.burst", Value: strconv.FormatUint(*c.Burst, 10)})
	}
	return writes, nil
}

// weightFromShares converts v1 shares (2..262144, 1024 by default) into a v2
// weight (1..10000, 100 by default). The exponent is the parabola through
// those three points on logarithmic scales, rounded up as runc and crun do, so
// that the same shares mean the same under every runtime. No shares, no
// weight: 0 stays 0.
func weightFromShares(shares uint64) uint64 {
	switch {
	case shares == 0:
		return 0
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, l*(l+125)/612-7.0/34)))
}

// CPUStats is cpu.stat and cpu.pressure.
type CPUStats struct {
	Usage, User, System uint64 // µs
	NrPeriods           uint64 // periods of cpu.max in which the cgroup ran
	NrThrottled         uint64 // of these, how many ended with the quota used up
	Throttled           uint64 // µs
	NrBursts, Burst     uint64 // periods with a burst, and its µs (Linux 5.14)
	PSI                 *Pressure
}

func parseCPUStat(data []byte) (CPUStats, error) {
	var s CPUStats
	err := eachKey(data, func(key []byte, value uint64) {
		switch string(key) {
		case "usage_usec":
			s.Usage = value
		case "user_usec":
			s.User = value
		case "system_usec":
			s.System = value
		case "nr_periods":
			s.NrPeriods = value
		case "nr_throttled":
			s.NrThrottled = value
		case "throttled_usec":
			s.Throttled = value
		case "nr_bursts":
			s.NrBursts = value
		case "burst_usec":
			s.Burst = value
		}
	})
	return s, err
}

func readCPU(r *statReader) *CPUStats {
	var s CPUStats
	if !r.file("cpu.stat", func(data []byte) (err error) {
		s, err = parseCPUStat(data)
		return err
	}) {
		return nil
	}
	s.PSI = r.pressure("cpu.pressure")
	return &s
}
