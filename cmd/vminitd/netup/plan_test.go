package netup

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseNetworkFlag(t *testing.T) {
	i, err := ParseNetworkFlag("mac=02:00:00:00:00:01,addr=192.168.127.2/24,addr=fd00::2/64")
	require.NoError(t, err)
	require.Equal(t, "02:00:00:00:00:01", i.String())
	require.Equal(t, "[192.168.127.2/24 fd00::2/64]", prefixes(i.Addrs))
	require.Equal(t, "192.168.127.1", i.Gateway.String())
	require.Equal(t, []netip.Addr{i.Gateway}, i.DNS)

	i, err = ParseNetworkFlag("mac=02:00:00:00:00:01,addr=10.0.0.1/24")
	require.NoError(t, err)
	require.False(t, i.Gateway.IsValid(), "its own address is no gateway")
	i, err = ParseNetworkFlag("mac=02:00:00:00:00:01,addr=10.0.0.1/32")
	require.NoError(t, err)
	require.False(t, i.Gateway.IsValid())
	i, err = ParseNetworkFlag("mac=02:00:00:00:00:01,dhcp=true")
	require.NoError(t, err)
	require.True(t, i.DHCP)

	i, err = ParseNetworkFlag("mac=02:00:00:00:00:01,dhcp=true,mtu=9000")
	require.NoError(t, err)
	require.Equal(t, 9000, i.MTU)

	for _, bad := range []string{
		"mac=02:00:00:00:00:01,mtu=67", "mac=02:00:00:00:00:01,mtu=x", "", "mac", "mac=", "mac=zz", "mac=02:00:00:00:00:01:02:03", "addr=10.0.0.2/24", "mac=02:00:00:00:00:01,addr=10.0.0.2",
		"mac=02:00:00:00:00:01,addr=10.0.0.2/33", "mac=02:00:00:00:00:01,addr=10.0.0.2/24,addr=10.0.0.3/24",
		"mac=02:00:00:00:00:01,addr=10.0.0.2/24,dhcp=true", "mac=02:00:00:00:00:01,dhcp=perhaps", "mac=02:00:00:00:00:01,vlan=1",
		"mac=02:00:00:00:00:01,addr=::ffff:10.0.0.2/120",
	} {
		_, err := ParseNetworkFlag(bad)
		require.Error(t, err, "%q", bad)
	}
}

func prefixes(p []netip.Prefix) string {
	s := "["
	for n, x := range p {
		if n > 0 {
			s += " "
		}
		s += x.String()
	}
	return s + "]"
}

func FuzzParseNetworkFlag(f *testing.F) {
	f.Add("mac=02:00:00:00:00:01,addr=192.168.127.2/24,addr=fd00::2/64")
	f.Add("mac=02:00:00:00:00:01,dhcp=true")
	f.Fuzz(func(t *testing.T, value string) {
		i, err := ParseNetworkFlag(value)
		if err != nil {
			if len(i.MAC) > 0 || len(i.Addrs) > 0 || i.DHCP {
				t.Errorf("%q gave an error and %+v", value, i)
			}
			return
		}
		if len(i.MAC) != 6 || len(i.Addrs) > 2 {
			t.Errorf("%q gave %+v", value, i)
		}
		for _, p := range i.Addrs {
			if !p.IsValid() {
				t.Errorf("%q gave an invalid prefix", value)
			}
		}
	})
}

func TestNewPlan(t *testing.T) {
	first, err := ParseNetworkFlag("mac=02:00:00:00:00:01,addr=10.1.0.2/24")
	require.NoError(t, err)
	second, err := ParseNetworkFlag("mac=02:00:00:00:00:02,addr=10.2.0.2/24")
	require.NoError(t, err)
	six, err := ParseNetworkFlag("mac=02:00:00:00:00:03,addr=fd00::2/64")
	require.NoError(t, err)

	p, err := NewPlan(nil, []Interface{first, second, six}, nil)
	require.NoError(t, err)
	require.Equal(t, "10.1.0.1", p.Interfaces[0].Gateway.String())
	require.False(t, p.Interfaces[1].Gateway.IsValid(), "one default route per family")
	require.Equal(t, "fd00::1", p.Interfaces[2].Gateway.String())
	require.Equal(t, "nameserver 10.1.0.1\nnameserver 10.2.0.1\nnameserver fd00::1\n", ResolvConf(p.DNS, nil))

	p, err = NewPlan([]string{"10.0.2.15::10.0.2.2:24:box:eth0:none:10.0.2.3", "junk"}, nil, nil)
	require.ErrorContains(t, err, "junk")
	require.Len(t, p.Interfaces, 1)
	require.Equal(t, "box", p.Hostname)

	p, err = NewPlan([]string{"dhcp", ":::::eth1:auto6"}, nil, nil)
	require.NoError(t, err)
	require.True(t, p.Interfaces[0].DHCP)
	require.True(t, p.Interfaces[1].Auto6)
	p, err = NewPlan([]string{"dhcp"}, nil, []byte("#PROTO: DHCP\nnameserver 10.0.0.1\nnameserver 0.0.0.0\n"))
	require.NoError(t, err)
	require.Empty(t, p.Interfaces, "the kernel has asked for a lease itself")
	require.Equal(t, "nameserver 10.0.0.1\n", ResolvConf(p.DNS, nil))

	for _, pnp := range []string{"", "#MANUAL\n"} {
		p, err = NewPlan([]string{"dhcp"}, nil, []byte(pnp))
		require.NoError(t, err)
		require.True(t, p.Interfaces[0].DHCP, "the kernel has got no lease")
	}

	p, err = NewPlan(make([]string, 100), make([]Interface, 100), nil)
	require.NoError(t, err)
	require.Empty(t, p.Interfaces, "nothing asked, nothing done")
}

func TestResolvConf(t *testing.T) {
	a := netip.MustParseAddr
	require.Empty(t, ResolvConf(nil, nil))
	require.Equal(t, "nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\n",
		ResolvConf([]netip.Addr{a("1.1.1.1"), {}, a("1.1.1.1"), a("2.2.2.2"), a("3.3.3.3"), a("4.4.4.4")}, nil))
	require.Equal(t, "search one two\nnameserver 1.1.1.1\n",
		ResolvConf([]netip.Addr{a("1.1.1.1")}, []string{"one", "", "two", "one", strings.Repeat("x", 300)}))
}

func FuzzParsePNP(f *testing.F) {
	f.Add("#PROTO: DHCP\ndomain x\nnameserver 10.0.0.1\nbootserver 0.0.0.0\n")
	f.Fuzz(func(t *testing.T, text string) {
		if servers := parsePNP(text); len(servers) > maxNameservers {
			t.Errorf("%d servers", len(servers))
		}
	})
}
