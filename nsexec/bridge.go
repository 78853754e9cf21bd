package nsexec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Connection says how a container is connected with a network of the guest: by
// a pair of devices, of which one is the container's and the other is in
// a bridge with the guest's interface.
type Connection struct {
	Uplink   net.HardwareAddr // of the guest's interface
	MAC      net.HardwareAddr // of the container's
	Name     string           // of the container's; one the kernel completes if it ends in %d
	Addrs    []netip.Prefix
	Gateways []netip.Addr // of default routes
}

// names returns the names of the bridge and of the guest's end of the pair. The
// bridge is found by its name by whoever comes next.
func (c *Connection) names() (bridge, end string) {
	short := func(mac net.HardwareAddr) string { return strings.ReplaceAll(mac.String(), ":", "") }
	return "br-" + short(c.Uplink), "ve-" + short(c.MAC)
}

// Connect makes the connection. The pair goes with the container's network
// namespace, the bridge stays.
func (d *NetDevices) Connect(c Connection) error {
	if err := d.connect(c); err != nil {
		return fmt.Errorf("connect %s with the network of %s: %w", c.Name, c.Uplink, err)
	}
	return nil
}

func (d *NetDevices) connect(c Connection) (err error) {
	bridgeName, end := c.names()
	bridge, err := d.here.bridge(bridgeName, c.Uplink)
	if err != nil {
		return err
	}
	before, err := d.there.links()
	if err != nil {
		return err
	}
	if err := d.here.addPair(end, c.Name, c.MAC, int(d.ns.Fd())); err != nil {
		return fmt.Errorf("make a pair of devices: %w", err)
	}
	ours, err := d.here.link(end)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil { // takes the other end along
			_ = d.here.deleteLink(ours)
		}
	}()
	if err := d.here.setMaster(ours, bridge); err != nil {
		return err
	}
	if err := d.here.setUp(ours); err != nil {
		return err
	}
	theirs, err := d.find(c.Name, strings.HasSuffix(c.Name, "%d"), before)
	if err != nil {
		return fmt.Errorf("find the container's end: %w", err)
	}
	if err := d.there.setUp(theirs); err != nil {
		return err
	}
	for _, a := range c.Addrs {
		if err := d.there.addAddress(theirs, staticAddress(a)); err != nil {
			return fmt.Errorf("add %s: %w", a, err)
		}
	}
	for _, gw := range c.Gateways {
		if err := d.there.addDefaultRoute(theirs, gw); err != nil {
			return fmt.Errorf("add default route by %s: %w", gw, err)
		}
	}
	return nil
}

// staticAddress is an address as it is added: duplicate detection would hold it
// back for a second.
func staticAddress(p netip.Prefix) address {
	ip := p.Addr().AsSlice()
	a := address{family: unix.AF_INET6, bits: byte(p.Bits())}
	if p.Addr().Is4() {
		a.family = unix.AF_INET
	}
	a.attrs = appendAttr(appendAttr(nil, unix.IFA_LOCAL, ip), unix.IFA_ADDRESS, ip)
	a.attrs = appendAttr(a.attrs, unix.IFA_FLAGS, binary.NativeEndian.AppendUint32(nil, unix.IFA_F_PERMANENT|unix.IFA_F_NODAD))
	return a
}

func (r *route) addDefaultRoute(index int, gw netip.Addr) error {
	family := byte(unix.AF_INET6)
	if gw.Is4() {
		family = unix.AF_INET
	}
	b := append([]byte{family, 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST}, 0, 0, 0, 0)
	b = appendAttr(b, unix.RTA_GATEWAY, gw.AsSlice())
	b = appendAttr(b, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	return r.do(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, b, nil)
}

// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
const vethInfoPeer = 1

// addPair makes a pair of devices, the other end in another network namespace.
func (r *route) addPair(name, peer string, mac net.HardwareAddr, netns int) error {
	p := appendAttr(linkRequest(0, 0, 0), unix.IFLA_IFNAME, append([]byte(peer), 0))
	p = appendAttr(p, unix.IFLA_ADDRESS, mac)
	p = appendAttr(p, unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(netns)))
	return r.addLink(name, "veth", appendAttr(nil, vethInfoPeer, p))
}

func (r *route) addLink(name, kind string, data []byte) error {
	info := appendAttr(nil, unix.IFLA_INFO_KIND, []byte(kind))
	if data != nil {
		info = appendAttr(info, unix.IFLA_INFO_DATA, data)
	}
	b := appendAttr(linkRequest(0, 0, 0), unix.IFLA_IFNAME, append([]byte(name), 0))
	err := r.do(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, appendAttr(b, unix.IFLA_LINKINFO, info), nil)
	if err == unix.EOPNOTSUPP {
		return sys.Unsupportedf("this kernel has no devices of type %s (is the module loaded?): %w", kind, err)
	}
	return err
}

func (r *route) deleteLink(index int) error {
	return r.do(unix.RTM_DELLINK, unix.NLM_F_ACK, linkRequest(index, 0, 0), nil)
}

func (r *route) setMaster(index, master int) error {
	b := appendAttr(linkRequest(index, 0, 0), unix.IFLA_MASTER, binary.NativeEndian.AppendUint32(nil, uint32(master)))
	if err := r.do(unix.RTM_NEWLINK, unix.NLM_F_ACK, b, nil); err != nil {
		return fmt.Errorf("put it into the bridge: %w", err)
	}
	return nil
}

// bridge returns the index of the bridge with the guest's interface in it, which
// is made when it is first asked for; two that do so at once share it. One that
// is there already may be what is left of an attempt that was cut short, so all
// the rest is done again, which changes nothing where it is done.
func (r *route) bridge(name string, uplink net.HardwareAddr) (index int, err error) {
	up, err := r.linkByMAC(uplink)
	if err != nil {
		return 0, err
	}
	made := r.addLink(name, "bridge", nil)
	if made != nil && made != unix.EEXIST {
		return 0, fmt.Errorf("make bridge %s: %w", name, made)
	}
	if index, err = r.link(name); err != nil {
		return 0, err
	}
	if err = r.setMaster(up, index); err == nil {
		err = r.setUp(index)
	}
	if err == nil {
		err = r.setUp(up)
	}
	if err != nil && made == nil {
		_ = r.deleteLink(index)
	}
	return index, err
}

// linkByMAC returns the index of the device with that address.
func (r *route) linkByMAC(mac net.HardwareAddr) (found int, err error) {
	err = r.dump(unix.RTM_GETLINK, linkRequest(0, 0, 0), func() { found = 0 }, func(body []byte) {
		if len(body) < unix.SizeofIfInfomsg {
			return
		}
		index, master, matches := int(binary.NativeEndian.Uint32(body[4:])), false, false
		for kind, data := range routeAttrs(body[unix.SizeofIfInfomsg:]) {
			switch kind {
			case unix.IFLA_ADDRESS:
				matches = string(data) == string(mac)
			case unix.IFLA_MASTER:
				master = true
			}
		}
		if matches && (found == 0 || master) { // a bridge takes the address of what is in it
			found = index
		}
	})
	if err == nil && found == 0 {
		err = sys.Mark(sys.ErrNotFound, errors.New("the guest has no interface of that address"))
	}
	return found, err
}
