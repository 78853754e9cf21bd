package clock

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reference is a clock to go by.
type reference struct {
	ptp *os.File // the host's clock, nil if the machine has none
	rtc string   // a file with the RTC's seconds since 1970
}

// kvmClock is how the kernel's ptp_kvm calls itself.
const kvmClock = "KVM virtual PTP"

const rtcFile = "/sys/class/rtc/rtc0/since_epoch"

// openReference returns nil if the machine has no clock that runs on while it
// is stopped.
func openReference() (*reference, error) {
	names, _ := filepath.Glob("/sys/class/ptp/ptp*/clock_name") // the pattern is well formed
	for _, name := range names {
		if b, err := os.ReadFile(name); err != nil || strings.TrimSpace(string(b)) != kvmClock {
			continue
		}
		f, err := os.Open(filepath.Join("/dev", filepath.Base(filepath.Dir(name))))
		if err != nil {
			return nil, err
		}
		return &reference{ptp: f}, nil
	}
	if _, err := readRTC(rtcFile); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return &reference{rtc: rtcFile}, nil
}

// precise reports whether the reference is good for more than seconds.
func (r *reference) precise() bool { return r.ptp != nil }

// offset is how far the realtime clock is ahead of the reference.
func (r *reference) offset() (time.Duration, error) {
	if r.ptp == nil {
		rtc, err := readRTC(r.rtc)
		// In the middle of the second that the RTC shows, for want of better.
		return time.Since(rtc.Add(time.Second / 2)).Round(0), err
	}
	// clock_gettime(2) of a descriptor: FD_TO_CLOCKID, "dynamic clocks". The
	// reading is between the two of the realtime clock.
	var ts unix.Timespec
	before := read(unix.CLOCK_REALTIME)
	if err := unix.ClockGettime(int32(^r.ptp.Fd())<<3|3, &ts); err != nil {
		return 0, fmt.Errorf("clock_gettime of %s: %w", r.ptp.Name(), err)
	}
	after := read(unix.CLOCK_REALTIME)
	return time.Duration(before + (after-before)/2 - ts.Nano()), nil
}

// readRTC reads the RTC, which counts UTC as on all virtual machines.
func readRTC(file string) (time.Time, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return time.Time{}, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", file, err)
	}
	return time.Unix(n, 0), nil
}
