package netup

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// testServer is a DHCP server in a network namespace of its own, behind a veth
// pair whose other end is in the test's.
type testServer struct {
	conn *net.UDPConn

	mu      sync.Mutex // guards all below
	give    net.IP     // the address it gives; nil: it is silent
	dns     byte       // last byte of the name server it names
	refuse  bool       // whether it refuses to extend
	lease   uint32     // seconds
	log     []string   // what it was asked
	unicast int        // renewals that came to it alone
}

// newTestServer makes the pair: device in the test's namespace.
func newTestServer(t *testing.T, device string, mac net.HardwareAddr) *testServer {
	t.Helper()
	here, err := os.Open("/proc/thread-self/ns/net")
	require.NoError(t, err)
	defer here.Close()
	s := &testServer{lease: 2, give: net.IPv4(10, 77, 0, 50), dns: 53}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread, and with it the namespace, ends
		made <- s.listen(int(here.Fd()), device, mac)
	}()
	if err := <-made; err != nil {
		t.Skipf("no veth interfaces here: %v", err)
	}
	t.Cleanup(func() { s.conn.Close() })
	go s.serve()
	return s
}

func (s *testServer) listen(testNS int, device string, mac net.HardwareAddr) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	rt, err := dialRoute()
	if err != nil {
		return err
	}
	defer rt.Close()
	peer := make([]byte, unix.SizeofIfInfomsg)
	peer = appendAttr(peer, unix.IFLA_IFNAME, append([]byte(device), 0))
	peer = appendAttr(peer, unix.IFLA_ADDRESS, mac)
	peer = appendAttr(peer, unix.IFLA_NET_NS_FD, binary.NativeEndian.AppendUint32(nil, uint32(testNS)))
	body := make([]byte, unix.SizeofIfInfomsg)
	body = appendAttr(body, unix.IFLA_IFNAME, []byte("srv0\x00"))
	info := appendAttr(nil, unix.IFLA_INFO_KIND, []byte("veth"))
	info = appendAttr(info, unix.IFLA_INFO_DATA, appendAttr(nil, 1, peer)) // VETH_INFO_PEER
	body = appendAttr(body, unix.IFLA_LINKINFO, info)
	if err := rt.request(unix.RTM_NEWLINK, keepExisting, body); err != nil {
		return err
	}
	link, err := net.InterfaceByName("srv0")
	if err != nil {
		return err
	}
	i := Interface{Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.1/24")}, Gateway: netip.MustParseAddr("10.77.0.254")}
	if err := i.setUp(*link); err != nil {
		return err
	}
	s.conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: dhcpServerPort})
	return err
}

func (s *testServer) serve() {
	buf := make([]byte, 2048)
	for {
		n, from, err := s.conn.ReadFromUDP(buf)
		if err != nil {
			return
		}
		m, err := parseDHCP(buf[:n])
		if err != nil || m.op != 1 {
			continue
		}
		if answer, ok := s.answer(m, from); ok {
			to := from
			if from.IP.IsUnspecified() {
				to = &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpClientPort}
			}
			_, _ = s.conn.WriteToUDP(answer, to)
		}
	}
}

func (s *testServer) answer(m dhcpMessage, from *net.UDPAddr) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	what := map[messageType]string{discover: "discover", request: "request"}[m.kind()]
	if m.ciaddr.Is4() && !m.ciaddr.IsUnspecified() {
		what = "renew"
	}
	s.log = append(s.log, what)
	if s.give == nil {
		return nil, false
	}
	if what == "renew" && !from.IP.IsUnspecified() {
		s.unicast++
	}
	m.op = 2
	given, _ := netip.AddrFromSlice(s.give.To4())
	kind := ack
	if what == "discover" {
		kind = offer
	}
	if what == "renew" && (s.refuse || m.ciaddr != given) {
		kind, given = nak, netip.Addr{}
	}
	m.yiaddr = given
	m.options = map[byte][]byte{
		optType: {byte(kind)}, optServer: {10, 77, 0, 1}, optMask: {255, 255, 255, 0}, optRouter: {10, 77, 0, 1},
		optDNS: {10, 77, 0, s.dns}, optDomain: []byte("test.lan"), optMTU: {5, 120}, // 1400
		optLease: binary.BigEndian.AppendUint32(nil, s.lease), optHostname: []byte("leased"),
	}
	return m.encode(), true
}

func (s *testServer) set(f func()) { s.mu.Lock(); f(); s.mu.Unlock() }

// A lease is got, renewed from the server alone, follows the server when it
// changes its mind, and is lost when the server falls silent.
func TestDHCP(t *testing.T) {
	privateNetwork(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	s := newTestServer(t, "dh0", mac)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	var name string
	plan, err := NewPlan(nil, []Interface{{MAC: mac, DHCP: true}}, nil)
	require.NoError(t, err)
	n := &Network{plan: plan, log: slog.New(slog.DiscardHandler), leases: make([]Lease, 1), resolv: resolv, named: func(s string) { name = s }}
	// Goroutines leave this thread's namespace: the parts of run are called here.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	client, lease, err := n.bring(ctx, 0)
	require.NoError(t, err)
	link, err := net.InterfaceByName("dh0")
	require.NoError(t, err)
	addresses := func() string {
		list, err := link.Addrs()
		require.NoError(t, err)
		text := ""
		for _, a := range list {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
				text += a.String() + " "
			}
		}
		return text
	}
	require.Equal(t, "10.77.0.50/24 ", addresses())
	link, err = net.InterfaceByName("dh0")
	require.NoError(t, err)
	require.Equal(t, 1400, link.MTU)
	require.Equal(t, "leased", name)
	requireContent(t, resolv, "search test.lan\nnameserver 10.77.0.53\n")
	routes, err := os.ReadFile("/proc/thread-self/net/route")
	require.NoError(t, err)
	require.Contains(t, string(routes), "dh0\t00000000\t01004D0A\t0003\t0\t0\t100")

	// The hold goes on until the test has seen enough.
	hold, stop := context.WithCancel(ctx)
	defer stop()
	changes := 0
	client.hold(hold, lease, func(old, now Lease) {
		changes++
		require.NoError(t, n.apply(0, client.link, old, now))
		switch changes {
		case 1, 2:
			require.Equal(t, lease, now)
			require.Equal(t, "10.77.0.50/24 ", addresses(), "renewed before it expires")
			if changes == 2 {
				s.set(func() { s.give, s.dns = net.IPv4(10, 77, 0, 60), 54 })
			}
		case 3: // refused: the address has gone
			require.False(t, now.Addr.IsValid())
			require.Empty(t, addresses())
			requireContent(t, resolv, "")
		case 4:
			require.Equal(t, "10.77.0.60/24 ", addresses())
			requireContent(t, resolv, "search test.lan\nnameserver 10.77.0.54\n")
			s.set(func() { s.give = nil })
		case 5: // expired
			require.Empty(t, addresses())
			s.set(func() { s.give = net.IPv4(10, 77, 0, 61) })
		case 6:
			require.Equal(t, "10.77.0.61/24 ", addresses())
			stop()
		}
	})
	s.set(func() { // it may still be answering
		require.Equal(t, 6, changes, "%v", s.log)
		require.GreaterOrEqual(t, s.unicast, 2)
	})
}

// A lease is renewed though not all that came with it could be applied.
func TestDHCPImperfect(t *testing.T) {
	privateNetwork(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	s := newTestServer(t, "dh0", mac)
	plan, err := NewPlan(nil, []Interface{{MAC: mac, DHCP: true}}, nil)
	require.NoError(t, err)
	n := &Network{plan: plan, log: slog.New(slog.DiscardHandler), leases: make([]Lease, 1), resolv: "/proc/no/resolv.conf", first: []chan error{make(chan error, 1)}}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		for renewed := false; !renewed; time.Sleep(10 * time.Millisecond) {
			s.set(func() { renewed = slices.Contains(s.log, "renew") || ctx.Err() != nil })
		}
		cancel()
	}()
	n.run(ctx, 0)
	require.ErrorContains(t, <-n.first[0], "resolv.conf")
	s.set(func() { require.Contains(t, s.log, "renew") })
}

func TestDHCPWithoutServer(t *testing.T) {
	privateNetwork(t)
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 6}
	s := newTestServer(t, "dh1", mac)
	s.set(func() { s.give = nil })
	n := &Network{plan: Plan{Interfaces: []Interface{{Device: "dh1", DHCP: true}}}, log: slog.New(slog.DiscardHandler), leases: make([]Lease, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	_, _, err := n.bring(ctx, 0)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "dh1")
	s.set(func() { require.GreaterOrEqual(t, len(s.log), 2, "it asks again") })
}
