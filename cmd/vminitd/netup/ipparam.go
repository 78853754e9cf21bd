package netup

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// parseIPParam reads the value of the kernel parameter ip=, as specified in
// Documentation/admin-guide/nfs/nfsroot.rst:
//
//	client:server:gateway:netmask:hostname:device:autoconf:dns0:dns1:ntp0
//
// or a single word for autoconf. Every field may be empty. IPv6 addresses are
// written in brackets, a netmask may be a prefix length and a number in the place
// of dns0 is an MTU, as dracut has it (dracut.cmdline(7)).
// The server and the time server are of no use to the guest; they are checked
// and dropped.
//
// The error lists the fields that were malformed; the Interface holds what
// could be made of the others.
func parseIPParam(value string) (Interface, error) {
	var i Interface
	fields := splitFields(value)
	if len(fields) == 1 && !isAddress(fields[0]) {
		var err error
		i.DHCP, i.Auto6, err = autoconf(fields[0])
		return i, err
	}
	if len(fields) > 7 {
		if mtu, err := parseMTU(fields[7]); err == nil { // and a MAC behind it
			i.MTU, fields = mtu, fields[:7]
		}
	}
	if len(fields) > 10 {
		return i, fmt.Errorf("ip=: %d fields, at most 10 are defined", len(fields))
	}
	p := ipParser{fields: fields}
	client := p.addr(0, "client")
	p.addr(1, "server")
	i.Gateway = p.addr(2, "gateway")
	if client.IsValid() {
		if bits, ok := p.prefixLen(3, client); ok {
			i.Addrs = []netip.Prefix{netip.PrefixFrom(client, bits)}
		}
	}
	i.Hostname = p.field(4)
	i.Device = p.field(5)
	if len(i.Device) > maxDeviceName || strings.ContainsAny(i.Device, "/ \t\n\x00") {
		p.fail("device", i.Device, errors.New("not an interface name"))
		i = Interface{Hostname: i.Hostname} // never guess another one
	}
	dhcp, auto6, err := autoconf(p.field(6))
	p.note(err)
	i.DHCP, i.Auto6 = dhcp && !client.IsValid(), auto6
	for n, name := range []string{"dns0", "dns1"} {
		if a := p.addr(7+n, name); a.IsValid() {
			i.DNS = append(i.DNS, a)
		}
	}
	p.addr(9, "ntp0")
	return i, errors.Join(p.errs...)
}

const maxDeviceName = 15 // IFNAMSIZ without the NUL

// autoconf reads the seventh field. The kernel's "on", "any" and "both" all end
// in a lease. IPv6 is configured by routers: there is no client for DHCPv6.
func autoconf(word string) (dhcp, auto6 bool, err error) {
	switch word {
	case "", "off", "none", "static":
		return false, false, nil
	case "on", "any", "dhcp", "both", "bootp", "rarp":
		return true, false, nil
	case "auto6", "dhcp6", "either6", "link6":
		return false, true, nil
	}
	return false, false, fmt.Errorf("ip=: autoconf %q is not one the kernel knows", word)
}

func isAddress(s string) bool {
	_, err := parseAddr(s)
	return err == nil
}

// splitFields splits at colons outside brackets.
func splitFields(s string) []string {
	var fields []string
	depth, start := 0, 0
	for n := range len(s) {
		switch s[n] {
		case '[':
			depth++
		case ']':
			depth = max(0, depth-1)
		case ':':
			if depth == 0 {
				fields = append(fields, s[start:n])
				start = n + 1
			}
		}
	}
	return append(fields, s[start:])
}

// ipParser reads fields by position and collects what is wrong with them.
type ipParser struct {
	fields []string
	errs   []error
}

func (p *ipParser) field(n int) string {
	if n < len(p.fields) {
		return p.fields[n]
	}
	return ""
}

func (p *ipParser) note(err error) {
	if err != nil {
		p.errs = append(p.errs, err)
	}
}

func (p *ipParser) fail(name, value string, err error) {
	p.note(fmt.Errorf("ip=: %s %q: %w", name, value, err))
}

// addr reads an address; an empty field, a malformed one and 0.0.0.0, which the
// kernel takes for "not given", are the zero Addr.
func (p *ipParser) addr(n int, name string) netip.Addr {
	s := p.field(n)
	if s == "" {
		return netip.Addr{}
	}
	a, err := parseAddr(s)
	if err != nil {
		p.fail(name, s, err)
		return netip.Addr{}
	}
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// prefixLen reads the netmask field for an address: dotted quad, prefix length,
// or nothing, which for IPv4 means the class of the address as in the kernel.
func (p *ipParser) prefixLen(n int, client netip.Addr) (int, bool) {
	s := p.field(n)
	if s == "" {
		return defaultPrefixLen(client), true
	}
	if bits, err := strconv.Atoi(s); err == nil && bits >= 0 && bits <= client.BitLen() {
		return bits, true
	}
	mask, err := netip.ParseAddr(s)
	if err == nil && mask.Is4() && client.Is4() {
		if ones, size := net.IPMask(mask.AsSlice()).Size(); size != 0 {
			return ones, true
		}
	}
	p.fail("netmask", s, errors.New("neither a netmask nor a prefix length"))
	return 0, false
}

func defaultPrefixLen(a netip.Addr) int {
	if a.Is6() {
		return 64
	}
	switch first := a.As4()[0]; {
	case first < 128:
		return 8
	case first < 192:
		return 16
	}
	return 24
}

// parseAddr reads an address with or without brackets. Zones have no meaning on
// a command line.
func parseAddr(s string) (netip.Addr, error) {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		s = strings.TrimSuffix(inner, "]")
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, err
	}
	if a.Zone() != "" {
		return netip.Addr{}, errors.New("a zone is not allowed here")
	}
	return a.Unmap(), nil
}
