// Package netup configures the guest's network interfaces from what the host
// said: ip= on the kernel command line and the -network flag. It waits for the
// interfaces, sets addresses and routes by rtnetlink, gets leases by DHCP and
// keeps them, and writes the resolver's configuration.
//
// Everything is idempotent: what the kernel has configured already (a kernel
// with CONFIG_IP_PNP) stays as it is. The package acts on the network namespace
// of the calling process and must never be used for a container's.
package netup

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
	MTU      int  // 0: the kernel's
	DHCP     bool // get an IPv4 lease and keep it
	Auto6    bool // bring it up; the kernel takes IPv6 addresses from routers
}

// wanted reports whether there is anything to do.
func (i Interface) wanted() bool { return i.DHCP || i.Auto6 || len(i.Addrs) > 0 || i.MTU > 0 }

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

// setUp brings the interface up and gives it its fixed addresses and its default
// route.
func (i Interface) setUp(link net.Interface) error {
	var errs []error
	if i.MTU > 0 {
		errs = append(errs, setMTU(link.Name, i.MTU))
	}
	if err := setUp(link.Name); err != nil {
		return errors.Join(append(errs, err)...)
	}
	rt, err := dialRoute()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer rt.Close()
	for _, addr := range i.Addrs {
		if err := rt.addAddress(link.Index, addr); err != nil {
			errs = append(errs, fmt.Errorf("add %s to %s: %w", addr, link.Name, err))
		}
	}
	if i.Gateway.IsValid() {
		if err := rt.addDefaultRoute(link.Index, i.Gateway, !onLink(i.Addrs, i.Gateway)); err != nil {
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

// onLink reports whether gw is inside one of an interface's own networks.
func onLink(own []netip.Prefix, gw netip.Addr) bool {
	for _, p := range own {
		if p.Contains(gw) {
			return true
		}
	}
	return false
}
