package tasksvc

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// stopSignalAnnotation is the image's STOPSIGNAL, as tools that make a config of
// an image write it down: OCI image-spec conversion.md, "Annotation Fields".
const stopSignalAnnotation = "org.opencontainers.image.stopSignal"

// The first and last of the real-time signals that programs may use: signal(7).
const sigRTMin, sigRTMax = 34, 64

// stopSignal is what asks a container to end: its image's signal, or SIGTERM.
func stopSignal(annotations map[string]string) syscall.Signal {
	if sig := parseSignal(annotations[stopSignalAnnotation]); sig != 0 {
		return sig
	}
	return unix.SIGTERM
}

// parseSignal knows numbers, names with and without SIG, in either case, and
// RTMIN+n and RTMAX-n. 0 stands for what it does not know.
func parseSignal(s string) syscall.Signal {
	if n, err := strconv.ParseUint(s, 10, 8); err == nil {
		if n > sigRTMax {
			return 0
		}
		return syscall.Signal(n)
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for _, rt := range []struct {
		name string
		base int
	}{{"RTMIN", sigRTMin}, {"RTMAX", sigRTMax}} {
		if rest, ok := strings.CutPrefix(name, rt.name); ok {
			n := 0
			if rest != "" {
				var err error
				if n, err = strconv.Atoi(rest); err != nil {
					return 0
				}
			}
			if sig := rt.base + n; sig >= sigRTMin && sig <= sigRTMax {
				return syscall.Signal(sig)
			}
			return 0
		}
	}
	return unix.SignalNum("SIG" + name)
}
