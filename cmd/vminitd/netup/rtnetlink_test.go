package netup

import (
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// requireRoot skips a test that needs root, except on the rungs that promise it.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if rung := os.Getenv("VMINIT_RUNG"); rung == "root" || rung == "vm" {
		t.Fatal("this rung must run as root")
	}
	t.Skip("needs root")
}

// The expected bytes are struct ifaddrmsg or struct rtmsg and their attributes,
// laid out by hand from linux/if_addr.h and linux/rtnetlink.h.
func TestRequests(t *testing.T) {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("the golden bytes are little-endian")
	}
	require.Equal(t, "02188200"+"07000000"+"08000200"+"0a000002"+"08000100"+"0a000002",
		hex.EncodeToString(addressRequest(7, netip.MustParsePrefix("10.0.0.2/24"))))
	def := Route{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr("10.0.0.1")}
	require.Equal(t, "02000000"+"fe030001"+"00000000"+"08000500"+"0a000001"+"08000400"+"07000000",
		hex.EncodeToString(routeRequest(7, def, false, 0)))
	require.Equal(t, "04000000", hex.EncodeToString(routeRequest(7, def, true, 0)[8:12]))
	require.Equal(t, "02180000"+"fe03fd01"+"00000000"+"08000100"+"0a010200"+"08000600"+"64000000"+"08000400"+"07000000",
		hex.EncodeToString(routeRequest(7, Route{To: netip.MustParsePrefix("10.1.2.0/24")}, false, 100)))
}

func FuzzParseAck(f *testing.F) {
	f.Add([]byte(strings.Repeat("\x00", 40)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if errno, err := parseAck(b, 1); err != nil && errno != 0 {
			t.Error("an error and an errno")
		}
	})
}

// privateNetwork moves the test into a network namespace of its own.
func privateNetwork(t *testing.T) {
	t.Helper()
	requireRoot(t)
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("unshare the network: %v", err)
	}
}

// newVeth makes an interface, and its peer, by a raw RTM_NEWLINK.
func newVeth(name string, mac net.HardwareAddr) error {
	rt, err := dialRoute()
	if err != nil {
		return err
	}
	defer rt.Close()
	body := make([]byte, unix.SizeofIfInfomsg)
	body = appendAttr(body, unix.IFLA_IFNAME, append([]byte(name), 0))
	body = appendAttr(body, unix.IFLA_ADDRESS, mac)
	body = appendAttr(body, unix.IFLA_LINKINFO, appendAttr(nil, unix.IFLA_INFO_KIND, []byte("veth")))
	return rt.request(unix.RTM_NEWLINK, keepExisting, body)
}

// configure runs a plan of one interface until that is configured.
func configure(t *testing.T, i Interface) error {
	link, err := waitForLink(t.Context(), i.matches)
	if err != nil {
		return err
	}
	return i.setUp(link)
}

func TestConfigure(t *testing.T) {
	privateNetwork(t)
	require.NoError(t, Loopback())
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	if err := newVeth("late0", mac); err != nil {
		t.Skipf("no veth interfaces here: %v", err)
	}
	i := Interface{
		MAC:     mac,
		Addrs:   []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24"), netip.MustParsePrefix("fd09::2/64")},
		Gateway: netip.MustParseAddr("10.9.0.1"),
		MTU:     1400,
	}
	require.NoError(t, configure(t, i))
	require.NoError(t, configure(t, i), "again: nothing to do")

	link, err := net.InterfaceByName("late0")
	require.NoError(t, err)
	require.NotZero(t, link.Flags&net.FlagUp)
	require.Equal(t, 1400, link.MTU)
	addrs, err := link.Addrs()
	require.NoError(t, err)
	text := ""
	for _, a := range addrs {
		text += a.String() + " "
	}
	require.Contains(t, text, "10.9.0.2/24")
	require.Contains(t, text, "fd09::2/64")
	routes, err := os.ReadFile("/proc/thread-self/net/route")
	require.NoError(t, err)
	require.Contains(t, string(routes), "late0\t00000000\t0100090A")

	// A gateway outside the network, as with a /32.
	off := Interface{Device: "late0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.8.0.2/32")}, Gateway: netip.MustParseAddr("169.254.0.1")}
	require.NoError(t, configure(t, off))
}

func TestWaitForLink(t *testing.T) {
	privateNetwork(t)
	named := func(name string) func(net.Interface) bool {
		return func(link net.Interface) bool { return link.Name == name }
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := waitForLink(ctx, named("never0"))
	require.ErrorIs(t, err, context.DeadlineExceeded)

	// Another thread of the same namespace makes the interface later.
	ns, err := os.Open("/proc/thread-self/ns/net")
	require.NoError(t, err)
	defer ns.Close()
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			made <- err
			return
		}
		time.Sleep(20 * time.Millisecond)
		made <- newVeth("later0", net.HardwareAddr{2, 0, 0, 0, 0, 8})
	}()
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	link, err := waitForLink(ctx, named("later0"))
	if made := <-made; made != nil {
		t.Skipf("no veth interfaces here: %v", made)
	}
	require.NoError(t, err)
	require.Equal(t, "later0", link.Name)
}
