package netup

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseIPParam(t *testing.T) {
	prefix := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	addr := netip.MustParseAddr
	tests := []struct {
		value string
		want  Interface
		errs  []string
	}{
		{value: "10.0.2.15::10.0.2.2:255.255.255.0::eth0:none", want: Interface{
			Device: "eth0", Addrs: prefix("10.0.2.15/24"), Gateway: addr("10.0.2.2")}},
		{value: "10.0.2.15::10.0.2.2:255.255.255.0:box:eth0:off:1.1.1.1:8.8.8.8:9.9.9.9", want: Interface{
			Device: "eth0", Addrs: prefix("10.0.2.15/24"), Gateway: addr("10.0.2.2"), Hostname: "box",
			DNS: []netip.Addr{addr("1.1.1.1"), addr("8.8.8.8")}}},
		{value: "10.0.2.15", want: Interface{Addrs: prefix("10.0.2.15/8")}},
		{value: "172.16.0.9::", want: Interface{Addrs: prefix("172.16.0.9/16")}},
		{value: "192.168.1.5:::::eth1", want: Interface{Device: "eth1", Addrs: prefix("192.168.1.5/24")}},
		{value: "10.1.1.1:::16", want: Interface{Addrs: prefix("10.1.1.1/16")}},
		{value: "10.1.1.1::169.254.1.1:255.255.255.255::eth0:none", want: Interface{
			Device: "eth0", Addrs: prefix("10.1.1.1/32"), Gateway: addr("169.254.1.1")}},
		{value: "[fd00::2]::[fd00::1]:64::eth0:none:[fd00::53]", want: Interface{
			Device: "eth0", Addrs: prefix("fd00::2/64"), Gateway: addr("fd00::1"), DNS: []netip.Addr{addr("fd00::53")}}},
		{value: "[fd00::2]", want: Interface{Addrs: prefix("fd00::2/64")}},
		{value: "dhcp", want: Interface{DHCP: true}},
		{value: "any", want: Interface{DHCP: true}},
		{value: "off", want: Interface{}},
		{value: "", want: Interface{}},
		{value: ":::::eth0:dhcp", want: Interface{Device: "eth0", DHCP: true}},
		{value: "0.0.0.0::0.0.0.0:::eth0:on", want: Interface{Device: "eth0", DHCP: true}},
		{value: "10.0.0.2:::255.0.0.0::eth0:dhcp", want: Interface{Device: "eth0", Addrs: prefix("10.0.0.2/8")}},
		{value: "10.0.0.2:::255.0.0.0::eth0:none:9000:02:00:00:00:00:01", want: Interface{Device: "eth0", Addrs: prefix("10.0.0.2/8"), MTU: 9000}},
		{value: ":::::eth0:auto6", want: Interface{Device: "eth0", Auto6: true}},
		{value: "either6", want: Interface{Auto6: true}},
		// What is wrong is left out and named; the rest counts.
		{value: "10.0.2.15::gw:255.255.255.0::eth0:none:dns", errs: []string{"gateway", "dns0"},
			want: Interface{Device: "eth0", Addrs: prefix("10.0.2.15/24")}},
		{value: "10.0.2.15:::255.0.255.0::eth0:none:1.1.1.1", errs: []string{"netmask"},
			want: Interface{Device: "eth0", DNS: []netip.Addr{addr("1.1.1.1")}}},
		{value: "10.0.2.15:::33::eth0:none", errs: []string{"netmask"}, want: Interface{Device: "eth0"}},
		{value: "10.0.2.15:::255.255.255.0:h:../../x:none", errs: []string{"device"}, want: Interface{Hostname: "h"}},
		{value: "10.0.2.15:::255.255.255.0:::magic", errs: []string{"autoconf"}, want: Interface{Addrs: prefix("10.0.2.15/24")}},
		{value: "fe80::1%eth0", errs: []string{"client"}, want: Interface{}},
		{value: "eth0", errs: []string{"autoconf"}, want: Interface{}},
		{value: "1:2:3:4:5:6:7:8:9:10:11", errs: []string{"fields"}, want: Interface{}},
	}
	for _, tt := range tests {
		t.Run(tt.value, func(t *testing.T) {
			got, err := parseIPParam(tt.value)
			if len(tt.errs) == 0 {
				require.NoError(t, err)
			}
			for _, e := range tt.errs {
				require.ErrorContains(t, err, e)
			}
			if tt.value == "fe80::1%eth0" { // colons separate: only brackets make it an address
				return
			}
			require.Equal(t, tt.want, got)
		})
	}
}

func FuzzParseIPParam(f *testing.F) {
	f.Add("10.0.2.15::10.0.2.2:255.255.255.0:box:eth0:off:1.1.1.1:8.8.8.8:9.9.9.9")
	f.Add("[fd00::2]::[fd00::1]:64::eth0:none:[fd00::53]")
	f.Fuzz(func(t *testing.T, value string) {
		i, _ := parseIPParam(value)
		if len(i.Addrs) > 1 || len(i.DNS) > 2 || len(i.Device) > maxDeviceName || strings.Contains(i.Device, "/") {
			t.Errorf("%q gave %+v", value, i)
		}
		for _, p := range i.Addrs {
			if !p.IsValid() || p.Addr().IsUnspecified() {
				t.Errorf("%q gave address %v", value, p)
			}
		}
	})
}
