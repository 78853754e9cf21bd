package main

import (
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/cmd/vminitd/power"
	"vminit/internal/sys"
)

// ending is the one place where the end is asked for, by a signal or by a
// request. The first to ask decides how it ends.
type ending struct {
	asked chan endRequest // room for one
}

type endRequest struct {
	action power.Action
	reason string
}

func newEnding() *ending { return &ending{asked: make(chan endRequest, 1)} }

// request asks for the end and returns at once.
func (e *ending) request(action power.Action, reason string) {
	select {
	case e.asked <- endRequest{action, reason}:
	default: // the end has been asked for already
	}
}

const sigPowerOff, sigReboot = sys.SigRTMin + 4, sys.SigRTMin + 5

// watchSignals asks for the end when a signal says so, for as long as the
// process lives. The other signals it catches are dropped, not ignored: SIG_IGN
// would be inherited by every workload.
//
// SIGRTMIN+4 and SIGRTMIN+5 are what systemd takes for power off and reboot; a
// kernel with ACPI_TINY_POWER_BUTTON sends the former for the power button.
//
// SIGHUP and SIGPIPE must not end a daemon whose starter has gone. SIGQUIT
// makes the Go runtime crash, and the kernel does deliver it to PID 1 because the
// runtime has a handler for it; a container that shares the guest's pid namespace
// can send it. In a guest it logs the goroutines when debugging and does nothing
// otherwise. SIGABRT there is power.OnCrash's.
func watchSignals(e *ending, log *slog.Logger, o options) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGPWR, unix.SIGHUP, unix.SIGPIPE, sigPowerOff, sigReboot)
	if !o.outsideVM() {
		signal.Notify(signals, unix.SIGQUIT)
	}
	go func() {
		for s := range signals {
			switch s {
			case unix.SIGTERM, unix.SIGINT, unix.SIGPWR:
				e.request(power.Off, "signal "+s.String())
			case sigPowerOff:
				e.request(power.Off, "signal SIGRTMIN+4")
			case sigReboot:
				e.request(power.Restart, "signal SIGRTMIN+5")
			case unix.SIGQUIT:
				if o.Debug {
					logStacks(log)
				}
			}
		}
	}()
}

// logStacks logs the stacks of all goroutines, one line each goroutine, so that
// the bound on the length of a line cuts off few of them.
func logStacks(log *slog.Logger) {
	buf := make([]byte, 256<<10)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		log.Info("goroutine", "stack", stack)
	}
}
