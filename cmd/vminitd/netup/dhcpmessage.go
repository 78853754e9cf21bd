package netup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// DHCPv4 messages: RFC 2131 section 2, options: RFC 2132.
const (
	dhcpHeader = 236 // bytes before the magic cookie
	dhcpCookie = 0x63825363
	dhcpMax    = 1500

	dhcpServerPort, dhcpClientPort = 67, 68
)

type messageType byte

const (
	discover messageType = 1
	offer    messageType = 2
	request  messageType = 3
	ack      messageType = 5
	nak      messageType = 6
)

// The options that are read or written.
const (
	optMask      = 1
	optRouter    = 3
	optDNS       = 6
	optHostname  = 12
	optDomain    = 15
	optMTU       = 26
	optRequested = 50
	optLease     = 51
	optOverload  = 52
	optType      = 53
	optServer    = 54
	optWanted    = 55
	optMaxSize   = 57
	optRenew     = 58
	optRebind    = 59
	optClientID  = 61
	optRoutes    = 121 // RFC 3442
)

// dhcpMessage is the part of a message that matters to a client without relay.
type dhcpMessage struct {
	op      byte // 1 to a server, 2 from one
	xid     uint32
	secs    uint16
	ciaddr  netip.Addr // what the client has
	yiaddr  netip.Addr // what it is given
	mac     net.HardwareAddr
	options map[byte][]byte
}

// encode renders a message; options are in order of their numbers, but the type
// is first, as some servers want it. Unset addresses are 0.0.0.0.
func (m dhcpMessage) encode() []byte {
	b := make([]byte, dhcpHeader, 400)
	b[0], b[1], b[2] = m.op, 1, 6 // Ethernet, 6 bytes
	binary.BigEndian.PutUint32(b[4:], m.xid)
	binary.BigEndian.PutUint16(b[8:], m.secs)
	for at, a := range map[int]netip.Addr{12: m.ciaddr, 16: m.yiaddr} {
		if a.Is4() {
			copy(b[at:], a.AsSlice())
		}
	}
	copy(b[28:34], m.mac)
	b = binary.BigEndian.AppendUint32(b, dhcpCookie)
	codes := []byte{}
	for c := range m.options {
		if c != optType {
			codes = append(codes, c)
		}
	}
	slices.Sort(codes)
	for _, c := range append([]byte{optType}, codes...) {
		if v := m.options[c]; len(v) <= 255 {
			b = append(append(b, c, byte(len(v))), v...)
		}
	}
	b = append(b, 255)
	for len(b) < 300 { // BOOTP's minimum, which some relays insist on
		b = append(b, 0)
	}
	return b
}

// parseDHCP decodes a message.
func parseDHCP(b []byte) (dhcpMessage, error) {
	if len(b) < dhcpHeader+4 {
		return dhcpMessage{}, errors.New("DHCP: message too short")
	}
	if binary.BigEndian.Uint32(b[dhcpHeader:]) != dhcpCookie {
		return dhcpMessage{}, errors.New("DHCP: no magic cookie")
	}
	m := dhcpMessage{
		op: b[0], xid: binary.BigEndian.Uint32(b[4:]), secs: binary.BigEndian.Uint16(b[8:]),
		ciaddr: netip.AddrFrom4([4]byte(b[12:16])), yiaddr: netip.AddrFrom4([4]byte(b[16:20])),
		mac: slices.Clone(net.HardwareAddr(b[28:34])), options: map[byte][]byte{},
	}
	if err := m.addOptions(b[dhcpHeader+4:]); err != nil {
		return dhcpMessage{}, err
	}
	// Options may go on in the fields for a file and a server name.
	if o := m.options[optOverload]; len(o) == 1 {
		if o[0]&1 != 0 {
			if err := m.addOptions(b[108:236]); err != nil {
				return dhcpMessage{}, err
			}
		}
		if o[0]&2 != 0 {
			if err := m.addOptions(b[44:108]); err != nil {
				return dhcpMessage{}, err
			}
		}
	}
	return m, nil
}

// addOptions reads a list of options. One that comes several times is one long
// one: RFC 3396.
func (m *dhcpMessage) addOptions(b []byte) error {
	for len(b) > 0 {
		code := b[0]
		switch {
		case code == 0:
			b = b[1:]
			continue
		case code == 255:
			return nil
		case len(b) < 2 || len(b)-2 < int(b[1]):
			return fmt.Errorf("DHCP: option %d is cut short", code)
		}
		m.options[code] = append(slices.Clip(m.options[code]), b[2:2+int(b[1])]...)
		b = b[2+int(b[1]):]
	}
	return nil
}

func (m dhcpMessage) kind() messageType {
	if v := m.options[optType]; len(v) == 1 {
		return messageType(v[0])
	}
	return 0
}

// address reads an option that is one address; the zero Addr if it is none.
func (m dhcpMessage) address(code byte) netip.Addr {
	if all := m.addresses(code); len(all) > 0 {
		return all[0]
	}
	return netip.Addr{}
}

func (m dhcpMessage) addresses(code byte) []netip.Addr {
	var all []netip.Addr
	for v := m.options[code]; len(v) >= 4; v = v[4:] {
		if a := netip.AddrFrom4([4]byte(v[:4])); !a.IsUnspecified() {
			all = append(all, a)
		}
	}
	return all
}

// seconds reads an option that is a time; 0 if it is none.
func (m dhcpMessage) seconds(code byte) time.Duration {
	if v := m.options[code]; len(v) == 4 {
		return time.Duration(binary.BigEndian.Uint32(v)) * time.Second
	}
	return 0
}

// name reads an option that is a host or domain name; "" for what could do harm
// in a file that programs parse.
func (m dhcpMessage) name(code byte) string {
	s := strings.TrimRight(string(m.options[code]), "\x00")
	if len(s) > 253 || strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_')
	}) {
		return ""
	}
	return s
}

// Lease is what a server has given.
type Lease struct {
	Addr     netip.Prefix // with its host part
	Routes   []Route
	DNS      []netip.Addr
	Domain   string
	Hostname string
	MTU      int // 0: the server does not say
	Server   netip.Addr

	// From the moment of the request on: when to ask the same server for more,
	// when any, when the address is lost. Zero means for ever.
	Renew, Rebind, Expire time.Duration
}

// Route leads to a network; without Via it is on the link.
type Route struct {
	To  netip.Prefix
	Via netip.Addr
}

const infinite = 0xffffffff * time.Second // RFC 2131 section 3.3

// minLease keeps a server from making a client do nothing but renew.
const minLease = 2 * time.Second

// lease reads an acknowledgement or an offer.
func (m dhcpMessage) lease() (Lease, error) {
	l := Lease{
		DNS: m.addresses(optDNS), Domain: m.name(optDomain), Hostname: m.name(optHostname), Server: m.address(optServer),
	}
	if !m.yiaddr.Is4() || m.yiaddr.IsUnspecified() || m.yiaddr.IsMulticast() || m.yiaddr.IsLoopback() {
		return l, fmt.Errorf("DHCP: the server gives the address %s", m.yiaddr)
	}
	bits := defaultPrefixLen(m.yiaddr)
	if v := m.options[optMask]; len(v) == 4 {
		ones, size := net.IPMask(v).Size()
		if size == 0 {
			return l, fmt.Errorf("DHCP: the server gives the netmask %s", net.IP(v))
		}
		bits = ones
	}
	l.Addr = netip.PrefixFrom(m.yiaddr, bits)
	if v := m.options[optMTU]; len(v) == 2 {
		if mtu := int(binary.BigEndian.Uint16(v)); mtu >= 68 { // RFC 2132 section 5.1
			l.MTU = mtu
		}
	}
	// Where there are classless routes the router option does not count: RFC 3442.
	if v, ok := m.options[optRoutes]; ok {
		routes, err := parseRoutes(v)
		if err != nil {
			return l, err
		}
		l.Routes = routes
	} else if gw := m.address(optRouter); gw.IsValid() {
		l.Routes = []Route{{netip.PrefixFrom(netip.IPv4Unspecified(), 0), gw}}
	}
	l.times(m)
	return l, nil
}

// times sets when to do what, with the defaults of RFC 2131 section 4.4.5.
func (l *Lease) times(m dhcpMessage) {
	expire := m.seconds(optLease)
	if expire == 0 || expire >= infinite {
		return
	}
	l.Expire = max(expire, minLease)
	l.Renew, l.Rebind = m.seconds(optRenew), m.seconds(optRebind)
	if l.Rebind <= 0 || l.Rebind >= l.Expire {
		l.Rebind = l.Expire * 7 / 8
	}
	if l.Renew <= 0 || l.Renew >= l.Rebind {
		l.Renew = min(l.Expire/2, l.Rebind)
	}
}

// maxRoutes bounds what a server can add to the guest's table.
const maxRoutes = 64

// parseRoutes reads the classless static routes: the width of the network, those
// bytes of it that count, a gateway; again and again.
func parseRoutes(v []byte) ([]Route, error) {
	var routes []Route
	for len(v) > 0 && len(routes) < maxRoutes {
		bits := int(v[0])
		n := (bits + 7) / 8
		if bits > 32 || len(v) < 1+n+4 {
			return nil, errors.New("DHCP: malformed routes")
		}
		var to [4]byte
		copy(to[:], v[1:1+n])
		r := Route{To: netip.PrefixFrom(netip.AddrFrom4(to), bits).Masked()}
		if via := netip.AddrFrom4([4]byte(v[1+n : 5+n])); !via.IsUnspecified() {
			r.Via = via
		}
		routes = append(routes, r)
		v = v[5+n:]
	}
	return routes, nil
}
