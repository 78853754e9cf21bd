package netup

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// maxNameservers is how many a resolver looks at (MAXNS, resolv.conf(5)).
const maxNameservers = 3

// maxSearch bounds the search line in bytes, as old resolvers do.
const maxSearch = 256

// ResolvConf renders resolv.conf(5) for the servers and the domains to search,
// in order, without repeats.
func ResolvConf(servers []netip.Addr, domains []string) string {
	var b strings.Builder
	search := ""
	for n, d := range domains {
		if d != "" && len(search)+len(d) < maxSearch && !slices.Contains(domains[:n], d) {
			search += " " + d
		}
	}
	if search != "" {
		b.WriteString("search" + search + "\n")
	}
	seen := make(map[netip.Addr]bool)
	for _, s := range servers {
		if !s.IsValid() || seen[s] || len(seen) == maxNameservers {
			continue
		}
		seen[s] = true
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.String()
}

// parsePNP returns the name servers in the kernel's own account of what it
// configured, /proc/net/pnp, which has the form of resolv.conf(5).
func parsePNP(text string) []netip.Addr {
	var servers []netip.Addr
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := parseAddr(fields[1]); err == nil && !a.IsUnspecified() && len(servers) < maxNameservers {
			servers = append(servers, a)
		}
	}
	return servers
}
