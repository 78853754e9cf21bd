package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/pflag"

	"vminit/internal/microvm"
)

// machineOptions are the flags that describe a VM.
type machineOptions struct {
	guestOptions
	cpus   int
	memory string
	accel  string
	qemu   string
	params []string
	shell  bool
}

func (o *machineOptions) register(f *pflag.FlagSet) {
	f.IntVar(&o.cpus, "cpus", 1, "processors of the VM")
	f.StringVar(&o.memory, "memory", "512M", "memory of the VM")
	f.StringVar(&o.kernel, "kernel", "", "kernel to boot (default: that of $VMINIT_KERNEL, or the newest installed, a cloud kernel first)")
	f.StringVar(&o.accel, "accel", "auto", "how to run the VM: auto, kvm or tcg")
	f.StringVar(&o.initrd, "initrd", "", "guest image to boot (default: made and cached, see vminitctl initramfs)")
	f.StringVar(&o.vminitd, "vminitd", "", "daemon for the guest image (default: the one beside this program)")
	f.StringVar(&o.qemu, "qemu", "", "emulator to use (default: the one in $PATH)")
	f.BoolVar(&o.shell, "debug-shell", false, "have the guest serve a shell to this host (vminitctl vm shell)")
	f.StringVar(&o.machine, "machine", "", "kind of machine: microvm for QEMU's one without PCI (default: the usual one)")
	f.StringArrayVar(&o.params, "kernel-param", nil, "add a parameter to the kernel's command line")
}

// config is the machine to boot, but for its name, what it boots from, disks
// and shares.
func (o *machineOptions) config(debug bool, log *slog.Logger) (microvm.Config, error) {
	memory, err := parseMiB(o.memory)
	if err != nil {
		return microvm.Config{}, err
	}
	accel, err := microvm.ChooseAccel(o.accel)
	if err != nil {
		return microvm.Config{}, err
	}
	log.Debug("accelerator", "name", accel.Name, "reason", accel.Reason)
	c := microvm.Config{
		QEMU: o.qemu, Machine: o.machine, Params: o.params,
		CPUs: o.cpus, MemoryMiB: memory, Accel: accel, Logger: log,
	}
	if debug {
		c.Flags = append(c.Flags, "-debug")
	}
	if o.shell {
		c.Flags = append(c.Flags, fmt.Sprintf("-debug-shell=%d", debugShellPort))
	}
	return c, nil
}
