package nsexec

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

func TestCheckDeviceName(t *testing.T) {
	for _, name := range []string{"eth0", "a", "fifteen-letters", "veth%d", "%d"} {
		require.NoError(t, CheckDeviceName(name), name)
	}
	for _, name := range []string{"", ".", "..", "a/b", "a b", "a:1", "sixteen--letters", "a%d%d", "%dx", "a%s", "a\n", "a\x00"} {
		require.ErrorIs(t, CheckDeviceName(name), sys.ErrInvalid, name)
	}
}

// vethPair makes two connected devices in our network namespace.
func vethPair(t *testing.T, r *route, a, b string) {
	peer := appendAttr(linkRequest(0, 0, 0), unix.IFLA_IFNAME, append([]byte(b), 0))
	info := appendAttr(nil, unix.IFLA_INFO_KIND, []byte("veth"))
	info = appendAttr(info, unix.IFLA_INFO_DATA, appendAttr(nil, 1, peer)) // VETH_INFO_PEER
	body := appendAttr(linkRequest(0, 0, 0), unix.IFLA_IFNAME, append([]byte(a), 0))
	body = appendAttr(body, unix.IFLA_LINKINFO, info)
	err := r.do(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, body, nil)
	if err == unix.EOPNOTSUPP {
		t.Skip("this kernel has no veth")
	}
	require.NoError(t, err)
	t.Cleanup(func() {
		if index, err := r.link(b); err == nil {
			_ = r.do(unix.RTM_DELLINK, unix.NLM_F_ACK, linkRequest(index, 0, 0), nil)
		}
	})
}

func testAddress(cidr string, flags uint32) address {
	p := netip.MustParsePrefix(cidr)
	a := address{family: unix.AF_INET6, bits: byte(p.Bits())}
	if p.Addr().Is4() {
		a.family = unix.AF_INET
		a.attrs = appendAttr(a.attrs, unix.IFA_LOCAL, p.Addr().AsSlice())
	}
	a.attrs = appendAttr(a.attrs, unix.IFA_ADDRESS, p.Addr().AsSlice())
	a.attrs = appendAttr(a.attrs, unix.IFA_RT_PRIORITY, binary.NativeEndian.AppendUint32(nil, 77))
	a.attrs = appendAttr(a.attrs, unix.IFA_FLAGS, binary.NativeEndian.AppendUint32(nil, flags|unix.IFA_F_NODAD))
	return a
}

// TestMoveNetDevices moves devices into the network namespace of a child that
// waits at a gate.
func TestMoveNetDevices(t *testing.T) {
	requireRoot(t)
	r, err := dialRoute()
	require.NoError(t, err)
	t.Cleanup(r.close)
	name := func(n int) string { return fmt.Sprintf("v%d.%d", os.Getpid()%1e6, n) }
	for n := 0; n < 6; n += 2 {
		vethPair(t, r, name(n), name(n+1))
	}
	index, err := r.link(name(0))
	require.NoError(t, err)
	for _, a := range []string{"10.99.3.4/24", "10.99.5.6/32", "fd00:99::1/64"} {
		require.NoError(t, r.addAddress(index, testAddress(a, unix.IFA_F_PERMANENT)), a)
	}
	want, err := r.addresses(index)
	require.NoError(t, err)
	require.Len(t, want, 3)

	null := devNull(t)
	p, err := NewProgram()
	require.NoError(t, err)
	for _, in := range p.SetupStdio() {
		p.Bind(in, int(null.Fd()))
	}
	p.LoopbackUp()
	socket := p.RouteSocket(func() { p.Gate("network") })
	p.Finish(Finish{Process: plainProcess("true")})
	c, err := launcher(t).Start(Launch{Program: p, Cgroup: -1, PIDNS: -1, Namespaces: unix.CLONE_NEWNET})
	require.NoError(t, err)
	regs, err := c.AwaitGate(soon())
	require.NoError(t, err)
	fd, err := c.GetFd(regs.Fd(socket))
	require.NoError(t, err)
	d, err := OpenNetDevices(fd)
	require.NoError(t, err)
	defer d.Close()

	require.NoError(t, d.Move(name(0), "eth0"))
	require.NoError(t, d.Move(name(2), "eth%d"))
	require.NoError(t, d.Move(name(4), ""))
	links, err := d.there.links()
	require.NoError(t, err)
	names := []string{}
	for _, n := range links {
		names = append(names, n)
	}
	require.ElementsMatch(t, []string{"lo", "eth0", "eth1", name(4)}, names)
	moved, err := d.there.link("eth0")
	require.NoError(t, err)
	got, err := d.there.addresses(moved)
	require.NoError(t, err)
	require.ElementsMatch(t, want, got)
	for index, name := range links {
		require.NotZero(t, linkFlags(t, d.there, index)&unix.IFF_UP, name)
	}

	err = d.Move(name(1), "eth0")
	require.ErrorIs(t, err, sys.ErrExists)
	_, err = r.link(name(1))
	require.NoError(t, err, "it stayed where it was")
	require.ErrorIs(t, d.Move("nosuchdev", "x"), sys.ErrNotFound)
	require.ErrorIs(t, d.Move("lo", "lo1"), unix.EINVAL)

	require.NoError(t, c.Open())
	require.NoError(t, c.AwaitExec(soon()))
	require.Zero(t, wait(t, c.Process).Code)
}

func linkFlags(t *testing.T, r *route, index int) (flags uint32) {
	require.NoError(t, r.do(unix.RTM_GETLINK, 0, linkRequest(index, 0, 0), func(b []byte) { flags = binary.NativeEndian.Uint32(b[8:]) }))
	return flags
}

// FuzzNetlink: whatever a datagram holds, taking it apart stays inside it.
func FuzzNetlink(f *testing.F) {
	f.Add(append([]byte{44, 0, 0, 0, 16, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0}, appendAttr(linkRequest(1, 0, 0), unix.IFLA_IFNAME, []byte("lo\x00"))...))
	f.Add([]byte{20, 0, 0, 0, 3, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		a := answer{seq: 1, each: func(body []byte) {
			if _, name, ok := parseLink(body); ok && name == "" {
				t.Error("a link without a name")
			}
			parseAddress(body, 1)
		}}
		_ = a.add(b)
	})
}
