package microvm

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"

	"vminit/internal/sys"
)

// The accelerators QEMU is asked for.
const (
	KVM = "kvm" // the host's hardware virtualization
	TCG = "tcg" // translation: works everywhere, takes some ten times longer
)

// Accel is a choice of accelerator and, for people, why.
type Accel struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// ChooseAccel picks an accelerator. want is "kvm", "tcg", or "auto" or "" for
// the best that works.
//
// Automatic choice takes KVM only if the processor says that it virtualizes:
// there are hosts whose /dev/kvm opens and whose KVM, itself running in a
// machine without nested virtualization, hangs on an unmodified kernel.
func ChooseAccel(want string) (Accel, error) {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		cpuinfo = nil // as if it said nothing
	}
	return decideAccel(want, runtime.GOARCH, cpuinfo, openKVM)
}

// openKVM tells whether /dev/kvm can be used, kvm(4).
func openKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// decideAccel is ChooseAccel on given facts. open is asked only if it matters.
func decideAccel(want, arch string, cpuinfo []byte, open func() error) (Accel, error) {
	switch want {
	case TCG:
		return Accel{TCG, "asked for"}, nil
	case KVM:
		if err := open(); err != nil {
			return Accel{}, fmt.Errorf("accelerator kvm: %w (use --accel tcg, or join the group that owns /dev/kvm)", err)
		}
		return Accel{KVM, "asked for"}, nil
	case "", "auto":
	default:
		return Accel{}, sys.Invalidf("accelerator %q: want auto, kvm or tcg", want)
	}
	if arch == "amd64" && !virtualizes(cpuinfo) {
		return Accel{TCG, "/proc/cpuinfo has neither vmx nor svm: no hardware virtualization here"}, nil
	}
	if err := open(); err != nil {
		return Accel{TCG, err.Error()}, nil
	}
	return Accel{KVM, "/dev/kvm opens and the processor virtualizes"}, nil
}

// virtualizes reports whether the first processor of an x86 /proc/cpuinfo has
// VMX (Intel) or SVM (AMD).
func virtualizes(cpuinfo []byte) bool {
	for line := range bytes.Lines(cpuinfo) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		if string(bytes.TrimSpace(key)) != "flags" {
			continue
		}
		return slices.ContainsFunc(bytes.Fields(value), func(flag []byte) bool {
			return string(flag) == "vmx" || string(flag) == "svm"
		})
	}
	return false
}
