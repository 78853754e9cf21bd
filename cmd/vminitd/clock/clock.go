// Package clock keeps the guest's realtime clock with the host's: a machine that
// was stopped, moved or restored from a snapshot goes on with the time it was
// stopped at, and nobody tells it.
//
// The reference is the host's clock through ptp_kvm, or else the RTC, which has
// whole seconds only. Whoever sets the clock otherwise (Guest.SetTime, a
// container that may) has their way: the difference they make is kept from then on.
package clock

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// period is how often the clocks are compared, which also bounds how long a
// guest that was stopped lives in the past.
const period = 10 * time.Second

// implausible is where no clock that was set can be: a kernel without an RTC
// starts in 1970.
var implausible = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)

// Keeper compares the clocks. Start it, then Run it in one goroutine; Wake may
// be called from any.
type Keeper struct {
	log   *slog.Logger
	ref   *reference
	timer *os.File // a timerfd that tells when the clock is set
	fd    int      // of timer
	// base is how far the realtime clock is meant to be ahead of the reference.
	base time.Duration
	// ahead is how far it was ahead of the boottime clock when we looked last. If
	// that jumps, somebody else has set it: suspend stops neither of them.
	ahead time.Duration
}

// Start finds a reference and sets the clock by it if nobody has yet. Without a
// reference, which is no error, the Keeper is nil. There is no need to close it
// before the machine ends.
func Start(log *slog.Logger) (*Keeper, error) {
	ref, err := openReference()
	if ref == nil || err != nil {
		return nil, err
	}
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("timerfd_create: %w", err)
	}
	k := &Keeper{log: log, ref: ref, timer: os.NewFile(uintptr(fd), "clock"), fd: fd}
	if err := k.arm(); err != nil {
		return nil, err
	}
	off, err := k.ref.offset()
	if err != nil {
		return nil, err
	}
	// The kernel has set it by the RTC. If it is far from that, somebody was
	// faster than we are.
	now := time.Now()
	switch {
	case now.Before(implausible):
		err = k.step(-off)
	case off.Abs() > coarseStep:
		k.base = off
	case k.ref.precise():
		err = k.step(-off)
	}
	k.ahead = aheadOfBoottime()
	return k, err
}

// arm starts the timer anew: timerfd_create(2), TFD_TIMER_CANCEL_ON_SET.
func (k *Keeper) arm() error {
	at := unix.ItimerSpec{Value: unix.NsecToTimespec(read(unix.CLOCK_REALTIME) + int64(period))}
	if err := unix.TimerfdSettime(k.fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &at, nil); err != nil {
		return fmt.Errorf("timerfd_settime: %w", err)
	}
	return nil
}

// Wake has the clocks compared at once.
func (k *Keeper) Wake() { _ = k.timer.SetReadDeadline(time.Unix(1, 0)) }

// Run keeps the clock for as long as the process lives.
func (k *Keeper) Run() error {
	buf := make([]byte, 8)
	for {
		_, err := k.timer.Read(buf)
		switch {
		case err == nil, errors.Is(err, unix.ECANCELED):
		case errors.Is(err, os.ErrDeadlineExceeded):
			_ = k.timer.SetReadDeadline(time.Time{})
		default:
			return fmt.Errorf("wait for the clock: %w", err)
		}
		if err := k.compare(); err != nil {
			k.log.Error("clock", "err", err)
		}
		if err := k.arm(); err != nil {
			return err
		}
	}
}

// compare looks at the clocks once and does what is to be done.
func (k *Keeper) compare() error {
	off, err := k.ref.offset()
	if err != nil {
		return err
	}
	ahead := aheadOfBoottime()
	if (ahead - k.ahead).Abs() > setByOthers {
		k.log.Info("the clock was set", "by", ahead-k.ahead)
		k.base, k.ahead = off, ahead
		return nil
	}
	k.ahead = ahead
	switch diff := off - k.base; decide(diff, k.ref.precise()) {
	case doStep:
		k.log.Info("the clock is stepped", "by", -diff)
		err = k.step(-diff)
	case doSlew:
		err = slew(-diff)
	}
	return err
}

// step moves the clock at once: adjtimex(2), ADJ_SETOFFSET, Linux 2.6.39.
func (k *Keeper) step(by time.Duration) error {
	t := unix.NsecToTimespec(int64(by))
	if t.Nsec < 0 {
		t.Sec, t.Nsec = t.Sec-1, t.Nsec+int64(time.Second)
	}
	tx := unix.Timex{Modes: adjSetOffset | adjNano, Time: unix.Timeval{Sec: t.Sec, Usec: t.Nsec}}
	if _, err := unix.Adjtimex(&tx); err != nil {
		return fmt.Errorf("step the clock by %s: %w", by, err)
	}
	k.ahead = aheadOfBoottime()
	return nil
}

// slew lets the clock run up to 0.05 % faster or slower until it has moved by
// that much: adjtimex(2), ADJ_OFFSET_SINGLESHOT. Where somebody keeps the clock
// by other means (it counts as synchronized), it is left to them.
func slew(by time.Duration) error {
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err != nil {
		return fmt.Errorf("adjtimex: %w", err)
	}
	if tx.Status&staUnsync == 0 {
		return nil
	}
	tx = unix.Timex{Modes: adjOffsetSingleshot, Offset: by.Microseconds()}
	if _, err := unix.Adjtimex(&tx); err != nil {
		return fmt.Errorf("slew the clock by %s: %w", by, err)
	}
	return nil
}

// linux/timex.h
const (
	adjSetOffset        = 0x0100
	adjNano             = 0x2000
	adjOffsetSingleshot = 0x8001
	staUnsync           = 0x0040
)

// What differences mean.
const (
	coarseStep  = 2 * time.Second        // the RTC's second, read at both ends, and as much again
	preciseStep = 128 * time.Millisecond // what slewing needs minutes for; ntpd's limit, too
	preciseSlew = time.Millisecond
	setByOthers = 10 * time.Millisecond // slewing does 5 ms in a period
)

type action int

const (
	doNothing action = iota
	doSlew
	doStep
)

// decide says what a difference from the reference asks for.
func decide(diff time.Duration, precise bool) action {
	switch diff = diff.Abs(); {
	case diff > coarseStep, precise && diff > preciseStep:
		return doStep
	case precise && diff > preciseSlew:
		return doSlew
	}
	return doNothing
}

// read reads a clock, in nanoseconds; all that are asked for here exist.
func read(clock int32) int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(clock, &ts)
	return ts.Nano()
}

func aheadOfBoottime() time.Duration {
	return time.Duration(read(unix.CLOCK_REALTIME) - read(unix.CLOCK_BOOTTIME))
}
