// Command vminitd is PID 1 of a microVM: it brings the guest up, serves
// containerd's Task API over vsock and is itself the OCI runtime.
//
// Run as anything but PID 1, or with -listen unix:///path, it leaves the machine
// alone and only serves.
//
// This file is the whole program in order; the other files hold its parts.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"vminit/cmd/vminitd/boot"
	"vminit/cmd/vminitd/netup"
	"vminit/cmd/vminitd/power"
)

// version is set by the linker: -ldflags "-X main.version=...".
var version = "devel"

func main() {
	if text := inform(os.Args[1:]); text != "" && os.Getpid() != 1 {
		fmt.Print(text)
		return
	}
	d := newDaemon(os.Args[1:])
	if d.opts.outsideVM() {
		os.Exit(d.runOutsideVM())
	}
	d.runGuest()
}

// runGuest is the life of a guest: boot, serve, wait for the end, power off. It
// does not return.
func (d *daemon) runGuest() {
	defer d.powerOffOnPanic()
	r := &boot.Runner{Timeline: d.timeline, Log: d.log, Fatal: d.die}

	// The root comes first, see MakeRootPivotable. The modules of the vsock
	// transport take longest and load while the rest is mounted.
	r.Optional("pivotable root", boot.MakeRootPivotable)
	modules := inBackground(func() {
		r.Optional("load modules", func() error { return boot.LoadModules(boot.ModuleList) })
	})
	boot.MountAll(r)
	r.Optional("expedite RCU", boot.ExpediteRCU)
	r.Optional("console", boot.AttachConsole)
	r.Optional("device links", boot.DevLinks)
	r.Optional("hide memory", boot.HideMemory)
	r.Optional("oom score", boot.SparedByOOM)
	r.Optional("limits", boot.RaiseLimits)
	r.Optional("loopback", netup.Loopback)
	r.Optional("ctrl-alt-del", power.CatchCtrlAltDel)
	<-modules

	var s *services
	r.Required("serve", func() (err error) {
		s, err = serve(d.serviceConfig())
		return err
	})
	d.timeline.Mark("serving")
	inBackground(func() {
		defer close(d.settled)
		d.settle(r)
		d.timeline.Mark("settled")
	})

	d.powerOff(<-d.end.asked, s)
}

// settle does what serving does not need but containers do.
func (d *daemon) settle(r *boot.Runner) {
	r.Optional("cgroups", boot.SetupCgroups)
	r.Optional("load late modules", func() error { return boot.LoadModules(boot.ModuleListLate) })
	var cmdline []boot.Param
	r.Optional("kernel command line", func() (err error) {
		cmdline, err = boot.ReadCmdline()
		return err
	})
	r.Optional("sysctls", func() error { return boot.ApplySysctls(boot.Sysctls(cmdline)) })
	var network netup.Plan
	r.Optional("network plan", func() (err error) {
		network, err = netup.NewPlan(boot.Values(cmdline, "ip"), d.opts.Networks, netup.ReadPNP())
		return err
	})
	r.Optional("hostname", func() error { return boot.SetHostname(network.Hostname) })
	r.Optional("network files", network.WriteFiles)
	r.Optional("features file", writeFeatures)
	r.Optional("network", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), interfaceTimeout)
		defer cancel()
		return network.Apply(ctx)
	})
}

// powerOff ends the machine in order. It does not return.
func (d *daemon) powerOff(req endRequest, s *services) {
	d.log.Info("shutting down", "reason", req.reason)
	err := power.Down(power.Plan{
		Action: req.action,
		Hooks: []power.Hook{
			{Name: "stop serving", Timeout: 5 * time.Second, Run: s.stop},
			{Name: "drain", Timeout: 5 * time.Second, Run: s.drain},
		},
		Log:   d.log,
		Flush: d.con.Flush,
	})
	d.die("power off", err)
}
