package sys

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The first and last of the real-time signals that programs may use: signal(7).
// The C library keeps the kernel's first two.
const (
	SigRTMin unix.Signal = 34
	SigRTMax unix.Signal = 64
)

// ParseSignal reads the name of a signal, with or without SIG and in any case,
// RTMIN+n or RTMAX-n, or its number.
func ParseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > int(SigRTMax) {
			return 0, Invalidf("signal %d is not between 1 and %d", n, int(SigRTMax))
		}
		return unix.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	sig := unix.SignalNum("SIG" + name)
	if sig == 0 {
		sig = realTimeSignal(name)
	}
	if sig == 0 {
		return 0, Invalidf("%q is not a signal", s)
	}
	return sig, nil
}

// realTimeSignal reads RTMIN and RTMAX, each with a signed number behind it or
// none. 0 stands for what is no such signal.
func realTimeSignal(name string) unix.Signal {
	base := SigRTMin
	offset, ok := strings.CutPrefix(name, "RTMIN")
	if !ok {
		base = SigRTMax
		if offset, ok = strings.CutPrefix(name, "RTMAX"); !ok {
			return 0
		}
	}
	if offset == "" {
		return base
	}
	n, err := strconv.Atoi(offset)
	if err != nil || offset[0] != '+' && offset[0] != '-' {
		return 0
	}
	if sig := int(base) + n; sig >= int(SigRTMin) && sig <= int(SigRTMax) {
		return unix.Signal(sig)
	}
	return 0
}
