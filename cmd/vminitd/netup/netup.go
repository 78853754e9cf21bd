// Package netup configures the guest's network interfaces from what the host
// said: ip= on the kernel command line and the -network flag. It waits for the
// interface, sets addresses and routes by rtnetlink and writes the resolver's
// configuration.
//
// Everything is idempotent: what the kernel has configured already (a kernel
// with CONFIG_IP_PNP) stays as it is. The package acts on the network namespace
// of the calling process and must never be used for a container's.
package netup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"vminit/internal/sys"
)

// Interface is what the host wants of one network interface. It is named by MAC
// or by Device; with neither, the first one that is not the loopback is meant.
type Interface struct {
	Device   string
	MAC      net.HardwareAddr
	Addrs    []netip.Prefix // each with its host part: 10.0.0.2/24
	Gateway  netip.Addr     // default route; the zero value means none
	Hostname string
	DNS      []netip.Addr
	// DHCP asks for a lease. Not supported yet; Configure says so.
	DHCP bool
}

// String names the interface for messages.
func (i Interface) String() string {
	switch {
	case len(i.MAC) > 0:
		return i.MAC.String()
	case i.Device != "":
		return i.Device
	}
	return "the first interface"
}

// Configure waits until the interface exists or ctx ends, then brings it up,
// adds its addresses and its default route.
func (i Interface) Configure(ctx context.Context) error {
	if i.DHCP && len(i.Addrs) == 0 {
		return sys.Unsupportedf("configure %s: DHCP is not supported yet: give a static address", i)
	}
	if len(i.Addrs) == 0 {
		return nil
	}
	link, err := waitForLink(ctx, i.matches)
	if err != nil {
		return fmt.Errorf("wait for network interface %s: %w", i, err)
	}
	if err := setUp(link.Name); err != nil {
		return err
	}
	rt, err := dialRoute()
	if err != nil {
		return err
	}
	defer rt.Close()
	var errs []error
	for _, addr := range i.Addrs {
		if err := rt.addAddress(link.Index, addr); err != nil {
			errs = append(errs, fmt.Errorf("add %s to %s: %w", addr, link.Name, err))
		}
	}
	if i.Gateway.IsValid() {
		if err := rt.addDefaultRoute(link.Index, i.Gateway, !i.onLink(i.Gateway)); err != nil {
			errs = append(errs, fmt.Errorf("add default route by %s on %s: %w", i.Gateway, link.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (i Interface) matches(link net.Interface) bool {
	switch {
	case len(i.MAC) > 0:
		return bytes.Equal(link.HardwareAddr, i.MAC)
	case i.Device != "":
		return link.Name == i.Device
	}
	return link.Flags&net.FlagLoopback == 0 && len(link.HardwareAddr) > 0
}

// onLink reports whether gw is inside one of the interface's own networks.
func (i Interface) onLink(gw netip.Addr) bool {
	for _, p := range i.Addrs {
		if p.Contains(gw) {
			return true
		}
	}
	return false
}
