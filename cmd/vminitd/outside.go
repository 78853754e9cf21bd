package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vminit/cmd/vminitd/boot"
	"vminit/cmd/vminitd/power"
)

// runOutsideVM serves on a machine that is not ours: no mount, no sysctl, no
// reboot, only the reaping of orphans (PR_SET_CHILD_SUBREAPER, prctl(2), Linux
// 3.4). It returns the exit status.
func (d *daemon) runOutsideVM() int {
	defer d.flush()
	d.announce()
	r := &boot.Runner{Timeline: d.timeline, Log: d.log}
	r.Optional("subreaper", becomeSubreaper)
	if os.Geteuid() == 0 {
		r.Optional("hide memory", boot.HideMemory)
	}
	close(d.settled) // there is no boot to wait for
	close(d.completed)
	unix.Umask(0o022) // whatever our starter's is
	s, err := d.serveOutsideVM()
	d.tellReady(err)
	if err != nil {
		fmt.Fprintf(os.Stderr, "vminitd: %v\n", err)
		return 1
	}
	if d.opts.IdleExit > 0 {
		inBackground(func() { d.endWhenIdle(s) })
	}
	req := <-d.end.asked
	d.log.Info("shutting down", "reason", req.reason)
	for _, hook := range []power.Hook{{Timeout: d.opts.stopTimeout(), Run: s.stop}, {Timeout: 5 * time.Second, Run: s.tasks.Clear}, {Timeout: 5 * time.Second, Run: s.drain}} {
		ctx, cancel := context.WithTimeout(context.Background(), hook.Timeout)
		if err := hook.Run(ctx); err != nil {
			d.log.Error("shutdown", "err", err)
		}
		cancel()
	}
	d.leave()
	return 0
}

func (d *daemon) serveOutsideVM() (*services, error) {
	if err := d.openPlace(); err != nil {
		return nil, err
	}
	return serve(d.serviceConfig())
}

func becomeSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_CHILD_SUBREAPER: %w", err)
	}
	return nil
}

func (d *daemon) flush() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = d.con.Flush(ctx)
}
