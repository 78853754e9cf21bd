package main

import (
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"sync/atomic"
	"time"

	"vminit/cmd/vminitd/boot"
	"vminit/cmd/vminitd/clock"
	"vminit/cmd/vminitd/devices"
	"vminit/cmd/vminitd/power"
	"vminit/tasksvc"
)

// daemon is what both ways of running share. Its fields are set by newDaemon.
type daemon struct {
	opts     options
	con      *console
	log      *slog.Logger
	timeline *boot.Timeline
	end      *ending
	began    time.Duration // of CLOCK_MONOTONIC
	// settled is closed when the guest is ready for plain containers, completed
	// when boot is over.
	settled, completed chan struct{}

	idleLock int                          // open while there is -idle-lock, see ondemand.go
	clock    atomic.Pointer[clock.Keeper] // nil without a clock to go by
}

// newDaemon reads the arguments and starts the log and the watching of signals.
func newDaemon(args []string) *daemon {
	began := boot.Now()
	opts, warnings := parseFlags(args)
	if opts.outsideVM() && opts.EventsForward == "" {
		opts.forwardToContainerd(os.Getenv("TTRPC_ADDRESS"))
	}
	con := newConsole(os.Stderr, !opts.Debug, opts.LogFormat == logJSON)
	d := &daemon{
		opts:      opts,
		con:       con,
		log:       con.logger(opts.Debug),
		timeline:  new(boot.Timeline),
		end:       newEnding(),
		began:     began,
		settled:   make(chan struct{}),
		completed: make(chan struct{}),
	}
	watchSignals(d.end, d.log, opts)
	d.timeline.Add(boot.Entry{Name: "kernel", End: began})
	for _, w := range warnings {
		d.log.Warn("command line: " + w)
	}
	return d
}

// announce logs that the daemon has started. In a guest that is worth no time
// before it serves.
func (d *daemon) announce() {
	d.log.Info("vminitd starts", "version", version, "pid", os.Getpid(), "at", d.began)
}

func (d *daemon) serviceConfig() serviceConfig {
	return serviceConfig{
		Options:  d.opts,
		Version:  version,
		Log:      d.log,
		Timeline: d.timeline,
		Settled:  d.settled,
		Complete: d.completed,
		Shutdown: d.end.request,
	}
}

// die says on the console why the guest cannot go on and powers off. It must
// work when nothing else does, so it neither uses the log nor waits for it for
// long. In PID 1 it does not return.
func (d *daemon) die(step string, err error) {
	message := fmt.Sprintf("\nvminitd: cannot go on: %s: %v\nvminitd: powering off\n", step, err)
	written := inBackground(func() { fmt.Fprint(os.Stderr, message) })
	select {
	case <-written:
	case <-time.After(2 * time.Second): // a console that stands still
	}
	power.End(power.Off)
}

// powerOffOnPanic is deferred by the main goroutine. What other goroutines do
// not recover from comes to the same end by power.OnCrash, with less care for a
// console or a disk that stands still.
func (d *daemon) powerOffOnPanic() {
	if v := recover(); v != nil {
		d.die("panic", fmt.Errorf("%v\n%s", v, debug.Stack()))
	}
}

// keepDiskLinks makes the links to disks, now and whenever a disk comes or goes.
func (d *daemon) keepDiskLinks() error {
	disks := &devices.Disks{Sysfs: "/sys", Dev: "/dev", Log: d.log, OnlineCPUs: d.opts.OnlineCPUs, NewGeneration: func() {
		if k := d.clock.Load(); k != nil {
			k.Wake()
		}
	}}
	if err := disks.Start(); err != nil {
		return err
	}
	d.keep("disk links", disks.Run)
	return nil
}

// keepClock keeps the clock with the host's.
func (d *daemon) keepClock() error {
	k, err := clock.Start(d.log)
	if k == nil || err != nil {
		return err
	}
	d.clock.Store(k)
	d.keep("clock", k.Run)
	return nil
}

// watchButton asks for the end when the power button is pressed.
func (d *daemon) watchButton() error {
	b, err := power.WatchButton()
	if b == nil || err != nil {
		return err
	}
	d.keep("power button", func() error {
		return b.Run(func() { d.end.request(power.Off, "the power button was pressed") })
	})
	return nil
}

// keep runs fn in the background for as long as the guest lives. A panic in it
// is logged and ends fn alone.
func (d *daemon) keep(name string, fn func() error) {
	inBackground(func() {
		if err := tasksvc.Guard(d.log, name, fn); err != nil {
			d.log.Error(name+" has ended", "error", err)
		}
	})
}

// inBackground runs fn and returns a channel that is closed when it is done.
func inBackground(fn func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	return done
}
