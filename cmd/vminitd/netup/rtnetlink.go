package netup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// route is a NETLINK_ROUTE socket for requests that are answered by one
// acknowledgement: rtnetlink(7). It is not safe for concurrent use.
type route struct {
	fd  int
	seq uint32
}

func dialRoute() (*route, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a route socket: %w", err)
	}
	// The kernel answers within the send; the timeout guards PID 1 anyway.
	tv := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set the route socket's timeout: %w", err)
	}
	return &route{fd: fd}, nil
}

func (r *route) Close() error { return unix.Close(r.fd) }

// The ways to make something. What exists is left alone, or replaced.
const (
	keepExisting    = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	replaceExisting = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
)

// addAddress adds an address; one that is there already is fine. Duplicate
// address detection is off (IFA_F_NODAD): it would hold an IPv6 address back for
// a second, and the host that hands out addresses knows its guests.
func (r *route) addAddress(index int, p netip.Prefix) error {
	return r.request(unix.RTM_NEWADDR, keepExisting, addressRequest(index, p))
}

// lendAddress adds an address, or renews it, that the kernel takes away by
// itself after some time: whatever becomes of this daemon, the guest does not
// keep what is no longer its own. Zero means for ever.
func (r *route) lendAddress(index int, p netip.Prefix, lifetime time.Duration) error {
	body := addressRequest(index, p)
	if lifetime > 0 {
		body[2] &^= unix.IFA_F_PERMANENT
		seconds := uint32(min(lifetime.Seconds(), math.MaxUint32-1))
		info := binary.NativeEndian.AppendUint32(nil, seconds) // struct ifa_cacheinfo: preferred, valid
		info = binary.NativeEndian.AppendUint32(info, seconds)
		body = appendAttr(body, unix.IFA_CACHEINFO, append(info, make([]byte, 8)...))
	}
	return r.request(unix.RTM_NEWADDR, replaceExisting, body)
}

// deleteAddress takes an address away; it may have gone already.
func (r *route) deleteAddress(index int, p netip.Prefix) error {
	return ignore(r.request(unix.RTM_DELADDR, 0, addressRequest(index, p)), unix.EADDRNOTAVAIL)
}

// addressRequest encodes struct ifaddrmsg and its attributes.
func addressRequest(index int, p netip.Prefix) []byte {
	ip := p.Addr().AsSlice()
	b := []byte{family(p.Addr()), byte(p.Bits()), unix.IFA_F_PERMANENT | unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = appendAttr(b, unix.IFA_LOCAL, ip)
	return appendAttr(b, unix.IFA_ADDRESS, ip)
}

// addDefaultRoute adds a default route by gw; one that is there already is fine.
// offLink says that gw is outside the interface's networks (a /32, as clouds
// have it), which the kernel then must not hold against it.
func (r *route) addDefaultRoute(index int, gw netip.Addr, offLink bool) error {
	any := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gw.Is6() {
		any = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return r.request(unix.RTM_NEWROUTE, keepExisting, routeRequest(index, Route{any, gw}, offLink, 0))
}

// lendRoute adds or replaces a route of a lease. metric tells the routes of
// several interfaces apart: the lowest wins.
func (r *route) lendRoute(index int, to Route, offLink bool, metric uint32) error {
	return r.request(unix.RTM_NEWROUTE, replaceExisting, routeRequest(index, to, offLink, metric))
}

// deleteRoute takes a route away; it may have gone already.
func (r *route) deleteRoute(index int, to Route, metric uint32) error {
	return ignore(r.request(unix.RTM_DELROUTE, 0, routeRequest(index, to, false, metric)), unix.ESRCH)
}

func ignore(err error, errno unix.Errno) error {
	if errors.Is(err, errno) {
		return nil
	}
	return err
}

// routeRequest encodes struct rtmsg and its attributes.
func routeRequest(index int, to Route, offLink bool, metric uint32) []byte {
	var flags uint32
	if offLink {
		flags = unix.RTNH_F_ONLINK
	}
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if !to.Via.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	b := []byte{family(to.To.Addr()), byte(to.To.Bits()), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, scope, unix.RTN_UNICAST}
	b = binary.NativeEndian.AppendUint32(b, flags)
	if to.To.Bits() > 0 {
		b = appendAttr(b, unix.RTA_DST, to.To.Addr().AsSlice())
	}
	if to.Via.IsValid() {
		b = appendAttr(b, unix.RTA_GATEWAY, to.Via.AsSlice())
	}
	if metric > 0 {
		b = appendAttr(b, unix.RTA_PRIORITY, binary.NativeEndian.AppendUint32(nil, metric))
	}
	return appendAttr(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// appendAttr appends one struct rtattr, padded to four bytes.
func appendAttr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// request sends a request and waits for its acknowledgement. EEXIST is success.
func (r *route) request(typ, flags uint16, body []byte) error {
	r.seq++
	msg := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	msg = binary.NativeEndian.AppendUint16(msg, typ)
	msg = binary.NativeEndian.AppendUint16(msg, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	msg = binary.NativeEndian.AppendUint32(msg, r.seq)
	msg = binary.NativeEndian.AppendUint32(msg, 0)
	if err := unix.Sendto(r.fd, append(msg, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	buf := make([]byte, 4096)
	n, err := unix.Read(r.fd, buf)
	if err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	errno, err := parseAck(buf[:n], r.seq)
	if err != nil {
		return err
	}
	if errno != 0 && errno != unix.EEXIST {
		return errno
	}
	return nil
}

// parseAck reads a struct nlmsghdr with a struct nlmsgerr behind it: netlink(7).
func parseAck(b []byte, seq uint32) (unix.Errno, error) {
	if len(b) < unix.SizeofNlMsghdr+4 {
		return 0, errors.New("netlink: short answer")
	}
	if typ := binary.NativeEndian.Uint16(b[4:]); typ != unix.NLMSG_ERROR {
		return 0, fmt.Errorf("netlink: answer of type %d instead of an acknowledgement", typ)
	}
	if got := binary.NativeEndian.Uint32(b[8:]); got != seq {
		return 0, fmt.Errorf("netlink: answer to request %d instead of %d", got, seq)
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:]))), nil
}
