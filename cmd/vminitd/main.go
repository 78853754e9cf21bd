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
	"runtime"
	"runtime/debug"
	"time"

	"github.com/moby/sys/mountinfo"

	"vminit/cmd/vminitd/boot"
	"vminit/cmd/vminitd/netup"
	"vminit/cmd/vminitd/power"
)

// version is set by the linker: -ldflags "-X main.version=...".
var version = "devel"

// gcPercent has Go collect a heap of less than a megabyte, which is what the
// daemon's is, at 2 MiB instead of 4: a guest's memory belongs to its workload,
// and a life cycle takes no longer (docs/performance.md).
const gcPercent = 50

func main() {
	if text := inform(os.Args[1:]); text != "" && os.Getpid() != 1 {
		fmt.Print(text)
		return
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
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
	// transport take longest and load while what serving needs is mounted.
	var proc boot.Procfs
	var mounted []*mountinfo.Info
	r.Required("procfs", func() (err error) {
		proc, err = boot.OpenProcfs()
		return err
	})
	r.Optional("calm the runtime", func() error { return proc.CalmRuntime(boot.SlackWhileBooting) })
	r.Optional("pivotable root", func() (err error) {
		if mounted, err = proc.Mounted(); err != nil {
			return err
		}
		return boot.MakeRootPivotable(mounted)
	})
	// Who is in the kernel for long holds a P of Go's, and so does work that gives
	// way to requests: there is one more until the guest has settled.
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	modules := inBackground(func() {
		r.Optional("load modules", func() error { return boot.LoadModules(r, boot.ModuleList) })
	})
	boot.MountRequired(r, mounted)
	r.Optional("console", boot.AttachConsole)
	r.Optional("hide memory", boot.HideMemory)
	r.Optional("oom score", boot.SparedByOOM)

	var s *services
	r.Required("serve", func() (err error) {
		c := d.serviceConfig()
		c.Transport = modules
		s, err = serve(c)
		return err
	})
	d.timeline.Mark("serving")
	inBackground(func() {
		var cmdline []boot.Param
		var plan netup.Plan
		boot.GiveWay(func() { cmdline, plan = d.settle(r, mounted) })
		runtime.SetDefaultGOMAXPROCS()
		d.timeline.Mark("settled")
		close(d.settled)
		d.complete(r, cmdline, plan)
		d.timeline.Mark("complete")
		close(d.completed)
		r.Optional("calm the runtime less", func() error { return proc.CalmRuntime(boot.SlackAfterwards) })
		proc.Close()
	})

	d.powerOff(<-d.end.asked, s)
}

// settle does what serving does not need but every container does. The modules
// come first: what they find, disks above all, takes its time without us.
func (d *daemon) settle(r *boot.Runner, mounted []*mountinfo.Info) (cmdline []boot.Param, plan netup.Plan) {
	d.announce()
	r.Optional("end on a crash", power.OnCrash)
	modules := inBackground(func() {
		r.Optional("load late modules", func() error { return boot.LoadModules(r, boot.ModuleListLate) })
	})
	boot.MountRest(r, mounted)
	r.Optional("disk links", d.keepDiskLinks)
	r.Optional("expedite RCU", boot.ExpediteRCU)
	r.Optional("cgroups", boot.SetupCgroups)
	r.Optional("device links", boot.DevLinks)
	r.Optional("limits", boot.RaiseLimits)
	r.Optional("kernel command line", func() (err error) {
		cmdline, err = boot.ReadCmdline()
		return err
	})
	r.Optional("sysctls", func() error { return boot.ApplySysctls(boot.Sysctls(cmdline)) })
	r.Optional("network plan", func() (err error) {
		plan, err = netup.NewPlan(boot.Values(cmdline, "ip"), d.opts.Networks, netup.ReadPNP())
		return err
	})
	r.Optional("hostname", func() error { return boot.SetHostname(boot.AskedHostname(plan.Hostname, cmdline)) })
	r.Optional("network files", plan.WriteFiles)
	<-modules
	return cmdline, plan
}

// complete does what only some containers need.
func (d *daemon) complete(r *boot.Runner, cmdline []boot.Param, plan netup.Plan) {
	network := plan.Start(context.Background(), d.log, d.hostnameFromLease(plan))
	modules := inBackground(func() {
		r.Optional("load the rest of the modules", func() error { return boot.LoadModules(r, boot.ModuleListRest) })
	})
	for _, asked := range boot.Values(cmdline, "systemd.swap-extra") {
		inBackground(func() { r.Optional("swap "+asked, func() error { return boot.SwapOn(asked) }) })
	}
	r.Optional("loopback", netup.Loopback)
	r.Optional("ctrl-alt-del", power.CatchCtrlAltDel)
	r.Optional("power button", d.watchButton)
	r.Optional("features file", writeFeatures)
	var credentials boot.Credentials
	r.Optional("credentials", func() (err error) {
		credentials, err = boot.ReadCredentials(cmdline)
		return err
	})
	r.Optional("notify the host", func() error { return boot.NotifyHost(credentials) })
	r.Optional("machine id", func() error { return boot.WriteMachineID(cmdline, credentials) })
	r.Optional("host name of the machine", func() error { return boot.ReplaceFallbackHostname(credentials["system.hostname"]) })
	ctx, cancel := netup.Timeout(context.Background())
	defer cancel()
	network.Each(ctx, r.Optional)
	<-modules
	r.Optional("clock", d.keepClock)
}

// hostnameFromLease returns what to do with a host name that comes by DHCP: it
// counts where nobody else has named the guest.
func (d *daemon) hostnameFromLease(plan netup.Plan) func(string) {
	if plan.Hostname != "" {
		return nil
	}
	return func(name string) {
		if err := boot.ReplaceFallbackHostname(name); err != nil {
			d.log.Warn("host name of the DHCP lease", "err", err)
		}
	}
}

// powerOff ends the machine in order. It does not return.
func (d *daemon) powerOff(req endRequest, s *services) {
	d.log.Info("shutting down", "reason", req.reason)
	err := power.Down(power.Plan{
		Action: req.action,
		Hooks: []power.Hook{
			{Name: "stop serving", Timeout: d.opts.stopTimeout(), Run: s.stop},
			{Name: "drain", Timeout: 5 * time.Second, Run: s.drain},
		},
		Log:   d.log,
		Flush: d.con.Flush,
	})
	d.die("power off", err)
}
