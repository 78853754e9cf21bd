package nsexec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// RouteSocket opens a NETLINK_ROUTE socket in the child's network namespace and
// stops at the gate, where the parent takes it (Process.GetFd) to configure the
// namespace without entering it.
func (p *Program) RouteSocket(gate func()) Reg {
	fd := p.NewReg("route")
	p.Step("open a route socket")
	p.Call(unix.SYS_SOCKET, Int(unix.AF_NETLINK), Int(unix.SOCK_RAW|unix.SOCK_CLOEXEC), Int(unix.NETLINK_ROUTE)).Store(fd)
	gate()
	p.Call(unix.SYS_CLOSE, fd.Arg())
	return fd
}

// NetDevices moves network devices into another network namespace.
type NetDevices struct {
	here, there *route
	ns          *os.File // there
}

// OpenNetDevices works from this process's network namespace to that of the
// route socket, which it takes over.
func OpenNetDevices(routeSocket int) (*NetDevices, error) {
	there, err := newRoute(routeSocket)
	if err != nil {
		unix.Close(routeSocket)
		return nil, err
	}
	d := &NetDevices{there: there}
	if d.ns, err = there.namespace(); err == nil {
		d.here, err = dialRoute()
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// Close gives everything back but the devices.
func (d *NetDevices) Close() {
	d.there.close()
	if d.ns != nil {
		d.ns.Close()
	}
	if d.here != nil {
		d.here.close()
	}
}

// CheckDeviceName refuses names the kernel would (dev_valid_name, net/core/dev.c).
// A name that ends in %d is a template.
func CheckDeviceName(name string) error {
	base := strings.TrimSuffix(name, "%d")
	if name == "" || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." || strings.ContainsAny(base, "/: \t\n\v\f\r%\x00\xa0") {
		return sys.Invalidf("%q is not the name of a network device", name)
	}
	return nil
}

// Move moves the device called name, gives it the new name (its own if that is
// empty, one the kernel completes if it ends in %d), its permanent addresses of
// global scope, which a move loses, and sets it up. What fails before the move
// changes nothing.
func (d *NetDevices) Move(name, newName string) error {
	if newName == "" {
		newName = name
	}
	if err := d.move(name, newName); err != nil {
		return fmt.Errorf("linux.netDevices: move %s to %s in the container: %w", name, newName, err)
	}
	return nil
}

func (d *NetDevices) move(name, newName string) error {
	index, err := d.here.link(name)
	if err != nil {
		return err
	}
	addrs, err := d.here.addresses(index)
	if err != nil {
		return fmt.Errorf("read its addresses: %w", err)
	}
	before, err := d.there.links()
	if err != nil {
		return err
	}
	template := strings.HasSuffix(newName, "%d")
	for _, taken := range before {
		if taken == newName {
			return sys.Mark(sys.ErrExists, errors.New("there is a device of that name already"))
		}
	}
	if err := d.here.moveLink(index, int(d.ns.Fd()), newName); err != nil {
		return err
	}
	moved, err := d.find(newName, template, before)
	if err != nil {
		return fmt.Errorf("find it again: %w", err)
	}
	for _, a := range addrs {
		if err := d.there.addAddress(moved, a); err != nil {
			return fmt.Errorf("give it back its address: %w", err)
		}
	}
	return d.there.setUp(moved)
}

// find returns the index of a device that has just arrived; the kernel may have
// given it another.
func (d *NetDevices) find(name string, template bool, before map[int]string) (int, error) {
	if !template {
		return d.there.link(name)
	}
	after, err := d.there.links()
	if err != nil {
		return 0, err
	}
	prefix := strings.TrimSuffix(name, "%d")
	for index, name := range after {
		if _, old := before[index]; !old && strings.HasPrefix(name, prefix) {
			return index, nil
		}
	}
	return 0, errors.New("no such device")
}

// linkRequest encodes struct ifinfomsg.
func linkRequest(index int, flags, change uint32) []byte {
	b := []byte{unix.AF_UNSPEC, 0, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// parseLink reads index and name of a device from struct ifinfomsg.
func parseLink(body []byte) (index int, name string, ok bool) {
	if len(body) < unix.SizeofIfInfomsg {
		return 0, "", false
	}
	for kind, data := range routeAttrs(body[unix.SizeofIfInfomsg:]) {
		if kind == unix.IFLA_IFNAME {
			name = unix.ByteSliceToString(data)
		}
	}
	return int(binary.NativeEndian.Uint32(body[4:])), name, name != ""
}

// link returns the index of a device.
func (r *route) link(name string) (index int, err error) {
	err = r.do(unix.RTM_GETLINK, 0, appendAttr(linkRequest(0, 0, 0), unix.IFLA_IFNAME, append([]byte(name), 0)), func(body []byte) {
		index, _, _ = parseLink(body)
	})
	if err == unix.ENODEV {
		return 0, sys.Mark(sys.ErrNotFound, fmt.Errorf("there is no device called %s: %w", name, err))
	}
	return index, err
}

// links returns the names of all devices by index.
func (r *route) links() (list map[int]string, err error) {
	err = r.dump(unix.RTM_GETLINK, linkRequest(0, 0, 0), func() { list = map[int]string{} }, func(body []byte) {
		if index, name, ok := parseLink(body); ok {
			list[index] = name
		}
	})
	return list, err
}

// moveLink moves and renames; the kernel takes the device down for it.
func (r *route) moveLink(index, netns int, name string) error {
	b := appendAttr(linkRequest(index, 0, 0), unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(netns)))
	b = appendAttr(b, unix.IFLA_IFNAME, append([]byte(name), 0))
	return r.do(unix.RTM_NEWLINK, unix.NLM_F_ACK, b, nil)
}

func (r *route) setUp(index int) error {
	if err := r.do(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkRequest(index, unix.IFF_UP, unix.IFF_UP), nil); err != nil {
		return fmt.Errorf("set it up: %w", err)
	}
	return nil
}

// address is the part of a struct ifaddrmsg message that outlasts a move.
type address struct {
	family, bits byte
	attrs        []byte
}

// keptAddressAttrs make the same address again elsewhere. Labels begin with the
// device's old name, and counters of lifetimes are those of permanent ones.
var keptAddressAttrs = []uint16{unix.IFA_ADDRESS, unix.IFA_LOCAL, unix.IFA_BROADCAST, unix.IFA_RT_PRIORITY}

// parseAddress reads an address of the device, if it is permanent and global.
func parseAddress(body []byte, index int) (a address, ok bool) {
	if len(body) < unix.SizeofIfAddrmsg || int(binary.NativeEndian.Uint32(body[4:])) != index || body[3] != unix.RT_SCOPE_UNIVERSE {
		return a, false
	}
	a.family, a.bits = body[0], body[1]
	flags := uint32(body[2])
	for kind, data := range routeAttrs(body[unix.SizeofIfAddrmsg:]) {
		if kind == unix.IFA_FLAGS && len(data) == 4 {
			flags = binary.NativeEndian.Uint32(data)
			continue
		}
		for _, k := range keptAddressAttrs {
			if k == kind {
				a.attrs = appendAttr(a.attrs, kind, data)
			}
		}
	}
	// Duplicate detection has been done where it comes from.
	const keep = unix.IFA_F_PERMANENT | unix.IFA_F_NOPREFIXROUTE | unix.IFA_F_HOMEADDRESS | unix.IFA_F_MANAGETEMPADDR | unix.IFA_F_MCAUTOJOIN
	a.attrs = appendAttr(a.attrs, unix.IFA_FLAGS, binary.NativeEndian.AppendUint32(nil, flags&keep|unix.IFA_F_NODAD))
	return a, flags&unix.IFA_F_PERMANENT != 0
}

// addresses returns a device's permanent addresses of global scope.
func (r *route) addresses(index int) (list []address, err error) {
	all := make([]byte, unix.SizeofIfAddrmsg) // AF_UNSPEC
	err = r.dump(unix.RTM_GETADDR, all, func() { list = nil }, func(body []byte) {
		if a, ok := parseAddress(body, index); ok {
			list = append(list, a)
		}
	})
	return list, err
}

func (r *route) addAddress(index int, a address) error {
	b := binary.NativeEndian.AppendUint32([]byte{a.family, a.bits, 0, unix.RT_SCOPE_UNIVERSE}, uint32(index))
	return r.do(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, append(b, a.attrs...), nil)
}
