package netup

import (
	"net"
	"net/netip"
	"strconv"
	"strings"

	"vminit/internal/sys"
)

// ParseNetworkFlag reads the value of -network:
//
//	mac=M[,addr=CIDR][,addr=CIDR]    static, at most one address per family
//	mac=M,dhcp=true                  lease
//
// Either may have mtu=N.
//
// As nerdbox's hosts expect, a static interface has its gateway, which is its
// name server too, at the first address of its first network. The caller
// decides which interface's gateway becomes the default route.
func ParseNetworkFlag(value string) (Interface, error) {
	var i Interface
	for field := range strings.SplitSeq(value, ",") {
		key, v, ok := strings.Cut(field, "=")
		if !ok {
			return Interface{}, sys.Invalidf("network %q: %q is not key=value", value, field)
		}
		var err error
		switch key {
		case "mac":
			i.MAC, err = net.ParseMAC(v)
			if err == nil && len(i.MAC) != 6 {
				err = sys.Invalidf("an Ethernet address has 6 bytes")
			}
		case "addr":
			err = i.addStatic(v)
		case "dhcp":
			i.DHCP, err = strconv.ParseBool(v)
		case "mtu":
			i.MTU, err = parseMTU(v)
		default:
			err = sys.Invalidf("unknown key")
		}
		if err != nil {
			return Interface{}, sys.Invalidf("network %q: %s: %w", value, field, err)
		}
	}
	switch {
	case len(i.MAC) == 0:
		return Interface{}, sys.Invalidf("network %q: mac= is missing", value)
	case i.DHCP && len(i.Addrs) > 0:
		return Interface{}, sys.Invalidf("network %q: addr= and dhcp=true exclude each other", value)
	}
	if len(i.Addrs) > 0 {
		i.Gateway = firstAddress(i.Addrs[0])
	}
	if i.Gateway.IsValid() {
		i.DNS = []netip.Addr{i.Gateway}
	}
	return i, nil
}

// parseMTU reads an MTU in bytes. IPv4 needs 68 (RFC 791); more than 65535 fits
// into no packet.
func parseMTU(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 68 || n > 65535 {
		return 0, sys.Invalidf("not an MTU between 68 and 65535")
	}
	return n, nil
}

func (i *Interface) addStatic(s string) error {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return err
	}
	p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits())
	if !p.IsValid() {
		return sys.Invalidf("prefix length %d is too long", p.Bits())
	}
	for _, other := range i.Addrs {
		if other.Addr().Is4() == p.Addr().Is4() {
			return sys.Invalidf("a second address of the same family")
		}
	}
	i.Addrs = append(i.Addrs, p)
	return nil
}

// firstAddress returns the address after the network's own; the zero Addr where
// the network has no room for it beside the interface's address.
func firstAddress(p netip.Prefix) netip.Addr {
	gw := p.Masked().Addr().Next()
	if !p.Contains(gw) || gw == p.Addr() {
		return netip.Addr{}
	}
	return gw
}
