package cgroup2

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
)

// planIO plans io.bfq.weight or io.weight, and io.max with one line for each
// device.
func planIO(r *specs.LinuxResources) ([]Write, error) {
	b := r.BlockIO
	if b == nil {
		return nil, nil
	}
	var writes []Write
	if weight := deref(b.Weight); weight != 0 {
		w, err := weightWrite("default", weight)
		if err != nil {
			return nil, err
		}
		writes = append(writes, w)
	}
	for _, d := range b.WeightDevice {
		dev, err := deviceNumber(d.LinuxBlockIODevice)
		if err != nil {
			return nil, err
		}
		if weight := deref(d.Weight); weight != 0 {
			w, err := weightWrite(dev, weight)
			if err != nil {
				return nil, err
			}
			writes = append(writes, w)
		}
	}
	limits, err := planThrottle(b)
	return append(writes, limits...), err
}

// weightWrite sets the weight (10..1000) of a device, or the default one.
func weightWrite(key string, weight uint16) (Write, error) {
	if weight < 10 || weight > 1000 {
		return Write{}, sys.Invalidf("blockIO weight is %d, must be between 10 and 1000", weight)
	}
	linear := 1 + (uint64(weight)-10)*9999/990
	return Write{
		File: "io.bfq.weight", Value: fmt.Sprintf("%s %d", key, weight),
		Else: &Write{File: "io.weight", Value: fmt.Sprintf("%s %d", key, linear)},
	}, nil
}

// planThrottle gathers the four lists of limits into one line per device, as
// the kernel takes one device per write. The last of several limits counts.
func planThrottle(b *specs.LinuxBlockIO) ([]Write, error) {
	type line struct {
		dev    string
		limits [4]string
	}
	keys := [4]string{"rbps", "wbps", "riops", "wiops"}
	var lines []line
	index := map[string]int{} // into lines, by device
	for k, list := range [4][]specs.LinuxThrottleDevice{
		b.ThrottleReadBpsDevice, b.ThrottleWriteBpsDevice, b.ThrottleReadIOPSDevice, b.ThrottleWriteIOPSDevice,
	} {
		for _, d := range list {
			dev, err := deviceNumber(d.LinuxBlockIODevice)
			if err != nil {
				return nil, err
			}
			i, ok := index[dev]
			if !ok {
				i = len(lines)
				index[dev] = i
				lines = append(lines, line{dev: dev})
			}
			rate := "max" // what 0 meant in v1
			if d.Rate != 0 {
				rate = strconv.FormatUint(d.Rate, 10)
			}
			lines[i].limits[k] = keys[k] + "=" + rate
		}
	}
	slices.SortFunc(lines, func(a, b line) int { return cmp.Compare(a.dev, b.dev) })
	var writes []Write
	for _, l := range lines {
		words := append([]string{l.dev}, slices.DeleteFunc(l.limits[:], func(s string) bool { return s == "" })...)
		writes = append(writes, Write{File: "io.max", Value: strings.Join(words, " ")})
	}
	return writes, nil
}

func deviceNumber(d specs.LinuxBlockIODevice) (string, error) {
	if d.Major < 0 || d.Minor < 0 || d.Major > math.MaxUint32 || d.Minor > math.MaxUint32 {
		return "", sys.Invalidf("blockIO: %d:%d is no device number", d.Major, d.Minor)
	}
	return fmt.Sprintf("%d:%d", d.Major, d.Minor), nil
}
