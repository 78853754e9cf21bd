package netup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"

	"vminit/cmd/vminitd/boot"
)

// Files that the plan leaves in the guest.
const (
	resolvConf = "/etc/resolv.conf"
	hostsFile  = "/etc/hosts"
	hosts      = "127.0.0.1\tlocalhost\n::1\tlocalhost\n"
)

// maxInterfaces bounds what a command line can ask for.
const maxInterfaces = 32

// Plan is everything the host said about the network, put together: a pure
// value, so that what will be done can be looked at without privileges.
type Plan struct {
	Interfaces []Interface
	Hostname   string
	DNS        []netip.Addr
}

// NewPlan merges the ip= parameters, the -network flags and pnp, the contents
// of /proc/net/pnp, which exists only where the kernel has CONFIG_IP_PNP. If it
// says so, such a kernel has got a lease itself, and its name servers count. The
// first gateway of each family becomes the default route.
//
// The error lists what was malformed; the plan holds the rest.
func NewPlan(ipParams []string, flags []Interface, pnp []byte) (Plan, error) {
	var p Plan
	var errs []error
	// "#MANUAL" is a kernel that was not asked, or cannot (CONFIG_IP_PNP_DHCP, or
	// its network driver is a module).
	leased := bytes.HasPrefix(pnp, []byte("#PROTO:"))
	for _, value := range ipParams {
		i, err := parseIPParam(value)
		errs = append(errs, err)
		i.DHCP = i.DHCP && !leased
		if i.Hostname != "" {
			p.Hostname = i.Hostname
		}
		p.add(i)
	}
	for _, i := range flags {
		p.add(i)
	}
	p.DNS = append(p.DNS, parsePNP(string(pnp))...)
	p.keepFirstGateways()
	return p, errors.Join(errs...)
}

func (p *Plan) add(i Interface) {
	p.DNS = append(p.DNS, i.DNS...)
	if i.wanted() && len(p.Interfaces) < maxInterfaces {
		p.Interfaces = append(p.Interfaces, i)
	}
}

func (p *Plan) keepFirstGateways() {
	var have4, have6 bool
	for n := range p.Interfaces {
		gw := &p.Interfaces[n].Gateway
		have := &have4
		if gw.Is6() {
			have = &have6
		}
		if *have {
			*gw = netip.Addr{}
		} else if gw.IsValid() {
			*have = true
		}
	}
}

// ReadPNP returns /proc/net/pnp, or nil where the kernel has none.
func ReadPNP() []byte {
	b, err := os.ReadFile("/proc/net/pnp")
	if err != nil {
		return nil
	}
	if b == nil {
		b = []byte{}
	}
	return b
}

// WriteFiles writes /etc/resolv.conf and /etc/hosts: hosts bind them into their
// containers. A file that is there stays, unless the host named name servers.
func (p Plan) WriteFiles() error {
	return errors.Join(
		writeUnlessKept(resolvConf, ResolvConf(p.DNS, nil), len(p.DNS) == 0),
		writeUnlessKept(hostsFile, hosts, true),
	)
}

func writeUnlessKept(path, content string, keep bool) error {
	if keep {
		_, err := os.Stat(path)
		if err == nil {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for %s: %w", path, err)
		}
	}
	return boot.WriteEtc(path, content, boot.EtcScratch)
}
