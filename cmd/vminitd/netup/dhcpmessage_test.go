package netup

import (
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDHCPEncode(t *testing.T) {
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	m := dhcpMessage{op: 1, xid: 0x01020304, secs: 5, ciaddr: netip.MustParseAddr("10.0.0.9"), mac: mac,
		options: map[byte][]byte{optType: {3}, optRequested: {10, 0, 0, 9}, optHostname: []byte("box")}}
	b := m.encode()
	require.GreaterOrEqual(t, len(b), 300)
	require.Equal(t, "0101060001020304"+"00050000"+"0a000009", hex.EncodeToString(b[:16]))
	require.Equal(t, "63825363"+"350103"+"0c03626f78"+"32040a000009"+"ff00", hex.EncodeToString(b[236:256]))
	got, err := parseDHCP(b)
	require.NoError(t, err)
	m.yiaddr = netip.IPv4Unspecified()
	require.Equal(t, m, got)
	require.Equal(t, request, got.kind())
}

// answerWith is a server's message with options in hex.
func answerWith(t testing.TB, yiaddr string, options string) dhcpMessage {
	t.Helper()
	m := dhcpMessage{op: 2, yiaddr: netip.MustParseAddr(yiaddr), mac: net.HardwareAddr{2, 0, 0, 0, 0, 1}, options: map[byte][]byte{}}
	raw, err := hex.DecodeString(strings.ReplaceAll(options, " ", ""))
	require.NoError(t, err)
	b := append(m.encode()[:240], raw...)
	m, err = parseDHCP(append(b, 255))
	require.NoError(t, err)
	return m
}

func TestLease(t *testing.T) {
	a := netip.MustParseAddr
	l, err := answerWith(t, "10.0.2.15", "350105 0104ffffff00 03040a000202 06080a00020308080808 0f036c616e 1a0205dc 330400000e10 36040a000202").lease()
	require.NoError(t, err)
	require.Equal(t, Lease{
		Addr: netip.MustParsePrefix("10.0.2.15/24"), Routes: []Route{{netip.MustParsePrefix("0.0.0.0/0"), a("10.0.2.2")}},
		DNS: []netip.Addr{a("10.0.2.3"), a("8.8.8.8")}, Domain: "lan", MTU: 1500, Server: a("10.0.2.2"),
		Renew: 30 * time.Minute, Rebind: 3150 * time.Second, Expire: time.Hour,
	}, l)

	// Classless routes win over the router: 0/0, 169.254.169.254/32 on the link, 10.1/16.
	l, err = answerWith(t, "10.0.2.15", "350105 03040a000202 791a 00 0a000201 20 a9fea9fe 00000000 10 0a01 0a000205 08 0b 0a0002").lease()
	require.ErrorContains(t, err, "routes")
	l, err = answerWith(t, "10.0.2.15", "350105 03040a000202 7915 00 0a000201 20 a9fea9fe 00000000 10 0a01 0a000205").lease()
	require.NoError(t, err)
	require.Equal(t, []Route{{netip.MustParsePrefix("0.0.0.0/0"), a("10.0.2.1")}, {To: netip.MustParsePrefix("169.254.169.254/32")},
		{netip.MustParsePrefix("10.1.0.0/16"), a("10.0.2.5")}}, l.Routes)
	require.Equal(t, 8, l.Addr.Bits(), "the class of the address, without a netmask")
	require.Zero(t, l.Expire)

	l, err = answerWith(t, "10.0.2.15", "350105 3304ffffffff").lease()
	require.NoError(t, err)
	require.Zero(t, l.Expire, "for ever")
	l, err = answerWith(t, "10.0.2.15", "350105 330400000001 3a0400000009 3b0400000008 0f036c2061 0c046e616d00 1a020010").lease()
	require.NoError(t, err)
	require.Equal(t, minLease, l.Expire)
	require.True(t, 0 < l.Renew && l.Renew <= l.Rebind && l.Rebind < l.Expire, "%+v", l)
	require.Empty(t, l.Domain, "no spaces in resolv.conf")
	require.Equal(t, "nam", l.Hostname)
	require.Zero(t, l.MTU)

	for _, bad := range []string{"0.0.0.0", "224.0.0.1", "127.0.0.1"} {
		_, err = answerWith(t, bad, "350105").lease()
		require.Error(t, err, bad)
	}
	_, err = answerWith(t, "10.0.2.15", "350105 0104ff00ff00").lease()
	require.ErrorContains(t, err, "netmask")
}

// Options in the fields for names, and one option in two parts.
func TestDHCPOverload(t *testing.T) {
	m := answerWith(t, "10.0.2.15", "350102 340103 06040a000203")
	b := m.encode()
	copy(b[108:], "\x06\x04\x08\x08\x08\x08\xff")
	copy(b[44:], "\x0f\x03lan\xff")
	got, err := parseDHCP(b)
	require.NoError(t, err)
	require.Equal(t, "lan", got.name(optDomain))
	require.Len(t, got.addresses(optDNS), 2)

	for _, bad := range [][]byte{nil, b[:239], append(make([]byte, 300), 1), append(b[:240:240], 53, 9, 1)} {
		_, err := parseDHCP(bad)
		require.Error(t, err)
	}
}

func TestPackets(t *testing.T) {
	p := broadcastPacket([]byte("odd"))
	require.Zero(t, ^checksum(0, p[:20]), "a header sums up to nothing")
	require.Nil(t, payload(p), "it is meant for a server")
	p[23] = 68
	require.Equal(t, []byte("odd"), payload(p))
	require.Nil(t, payload(p[:30]))
	require.Nil(t, payload(nil))
}

func FuzzParseDHCP(f *testing.F) {
	f.Add(dhcpMessage{op: 2, yiaddr: netip.MustParseAddr("10.0.0.1"), options: map[byte][]byte{optType: {2}, optRoutes: {0, 1, 2, 3, 4}}}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		payload(b)
		m, err := parseDHCP(b)
		if err != nil {
			if m.options != nil {
				t.Error("an error and a message")
			}
			return
		}
		l, err := m.lease()
		if err != nil {
			return
		}
		if !l.Addr.IsValid() || l.Expire < 0 || l.Renew > l.Rebind || l.Rebind > l.Expire || l.Expire > 0 && l.Renew == 0 || len(l.Routes) > maxRoutes {
			t.Errorf("%+v", l)
		}
		if strings.ContainsAny(ResolvConf(l.DNS, []string{l.Domain}), "\x00\r;#") {
			t.Errorf("%q in resolv.conf", l.Domain)
		}
	})
}
