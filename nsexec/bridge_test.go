package nsexec

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// master returns the index of what a device is in, 0 if in nothing.
func master(t *testing.T, r *route, index int) (found int) {
	require.NoError(t, r.do(unix.RTM_GETLINK, 0, linkRequest(index, 0, 0), func(b []byte) {
		for kind, data := range routeAttrs(b[unix.SizeofIfInfomsg:]) {
			if kind == unix.IFLA_MASTER {
				found = int(binary.NativeEndian.Uint32(data))
			}
		}
	}))
	return found
}

// hardwareAddr returns the address of a device of ours.
func hardwareAddr(t *testing.T, name string) net.HardwareAddr {
	i, err := net.InterfaceByName(name)
	require.NoError(t, err)
	return i.HardwareAddr
}

// TestBridgeLeftHalfMade: a bridge that is there need not have the guest's
// interface in it.
func TestBridgeLeftHalfMade(t *testing.T) {
	requireRoot(t)
	r, err := dialRoute()
	require.NoError(t, err)
	t.Cleanup(r.close)
	name := fmt.Sprintf("b%d.", os.Getpid()%1e6)
	vethPair(t, r, name+"0", name+"1")
	up, err := r.link(name + "0")
	require.NoError(t, err)
	c := Connection{Uplink: hardwareAddr(t, name+"0")}
	bridge, _ := c.names()
	if err := r.addLink(bridge, "bridge", nil); err != nil {
		require.ErrorIs(t, err, sys.ErrUnsupported)
		t.Skip(err)
	}
	made, err := r.link(bridge)
	require.NoError(t, err)
	t.Cleanup(func() { _ = r.deleteLink(made) })

	for range 2 {
		index, err := r.bridge(bridge, c.Uplink)
		require.NoError(t, err)
		require.Equal(t, made, index)
		require.Equal(t, made, master(t, r, up))
		require.NotZero(t, linkFlags(t, r, made)&unix.IFF_UP)
		require.NotZero(t, linkFlags(t, r, up)&unix.IFF_UP)
	}
	// One that holds the interface but never came up.
	require.NoError(t, r.do(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkRequest(made, 0, unix.IFF_UP), nil))
	_, err = r.bridge(bridge, c.Uplink)
	require.NoError(t, err)
	require.NotZero(t, linkFlags(t, r, made)&unix.IFF_UP)
}

// TestBridgeOfWhatCannotBe: the loopback device cannot be in a bridge.
func TestBridgeOfWhatCannotBe(t *testing.T) {
	requireRoot(t)
	r, err := dialRoute()
	require.NoError(t, err)
	t.Cleanup(r.close)
	c := Connection{Uplink: make(net.HardwareAddr, 6)}
	up, err := r.linkByMAC(c.Uplink)
	require.NoError(t, err)
	require.NotZero(t, linkFlags(t, r, up)&unix.IFF_LOOPBACK)
	bridge, _ := c.names()
	_, err = r.bridge(bridge, c.Uplink)
	if !errors.Is(err, sys.ErrUnsupported) { // no bridges at all
		require.ErrorIs(t, err, unix.EINVAL)
	}
	_, err = r.link(bridge)
	require.ErrorIs(t, err, sys.ErrNotFound)
	_, err = r.bridge("br-nosuch", net.HardwareAddr{2, 0x99, 0x99, 0x99, 0x99, 0x99})
	require.ErrorIs(t, err, sys.ErrNotFound)
	_, err = r.link("br-nosuch")
	require.ErrorIs(t, err, sys.ErrNotFound)
}
