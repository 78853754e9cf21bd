package tasksvc

import (
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// checkNetDevices checks linux.netDevices: names, and that there is a network
// namespace to move devices into.
func checkNetDevices(devices map[string]specs.LinuxNetDevice, own uint64) error {
	if len(devices) > 0 && own&unix.CLONE_NEWNET == 0 {
		return sys.Invalidf("linux.netDevices needs a network namespace that is not the guest's")
	}
	for name, d := range devices {
		if err := nsexec.CheckDeviceName(name); err != nil {
			return sys.Invalidf("linux.netDevices: %w", err)
		}
		if d.Name == "" {
			continue
		}
		if err := nsexec.CheckDeviceName(d.Name); err != nil {
			return sys.Invalidf("linux.netDevices: %s: %w", name, err)
		}
	}
	return nil
}

// moveNetDevices moves them through the route socket that the child has in the
// register.
func moveNetDevices(devices map[string]specs.LinuxNetDevice, socket *nsexec.Reg) gateHandler {
	return func(child *nsexec.Child, regs *nsexec.Registers) error {
		fd, err := child.GetFd(regs.Fd(*socket))
		if err != nil {
			return err
		}
		d, err := nsexec.OpenNetDevices(fd)
		if err != nil {
			return err
		}
		defer d.Close()
		for _, name := range slices.Sorted(maps.Keys(devices)) {
			if err := d.Move(name, devices[name].Name); err != nil {
				return err
			}
		}
		return nil
	}
}
