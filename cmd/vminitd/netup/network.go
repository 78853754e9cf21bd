package netup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"vminit/cmd/vminitd/boot"
)

// Network keeps the interfaces of a plan configured, each by a goroutine of its
// own, for as long as the context of Start lives.
type Network struct {
	plan Plan
	log  *slog.Logger
	// named is told the host name that came with a lease; it may be nil.
	named func(string)
	first []chan error // by interface; told once how the first configuration went
	// resolv is the file for name servers that come with leases.
	resolv string

	mu     sync.Mutex // guards leases and what is written from them
	leases []Lease    // by interface; the zero Lease is none
}

// Start begins to configure the interfaces. An interface that has not appeared
// yet is waited for, a DHCP server that does not answer is asked again, until
// ctx ends.
func (p Plan) Start(ctx context.Context, log *slog.Logger, named func(string)) *Network {
	n := &Network{plan: p, log: log, named: named, leases: make([]Lease, len(p.Interfaces)), resolv: resolvConf}
	n.start(ctx)
	return n
}

func (n *Network) start(ctx context.Context) {
	for range n.plan.Interfaces {
		n.first = append(n.first, make(chan error, 1))
	}
	for k := range n.plan.Interfaces {
		go n.run(ctx, k)
	}
}

// Each calls step for every interface, at the same time, with a function that
// waits until it has been configured for the first time, or until ctx ends; what
// has not come by then is still worked on.
func (n *Network) Each(ctx context.Context, step func(name string, wait func() error)) {
	var all sync.WaitGroup
	for k, i := range n.plan.Interfaces {
		all.Go(func() {
			step("network "+i.String(), func() error {
				select {
				case err := <-n.first[k]:
					return err
				case <-ctx.Done():
					return fmt.Errorf("configure %s: not done in time, going on with it: %w", i, ctx.Err())
				}
			})
		})
	}
	all.Wait()
}

// run is the life of one interface.
func (n *Network) run(ctx context.Context, k int) {
	i := n.plan.Interfaces[k]
	defer func() {
		if v := recover(); v != nil { // must not take PID 1 along
			n.log.Error("panic in the network", "interface", i.String(), "panic", v, "stack", string(debug.Stack()))
		}
	}()
	client, lease, err := n.bring(ctx, k)
	n.first[k] <- err
	if client == nil {
		return
	}
	// Also after an error: the address is there, and the kernel takes it away when
	// the lease ends.
	client.hold(ctx, lease, func(old, now Lease) {
		if err := n.apply(k, client.link, old, now); err != nil {
			n.log.Error("network", "interface", i.String(), "err", err)
			return
		}
		if !now.Addr.IsValid() {
			n.log.Warn("the DHCP lease is lost", "interface", i.String(), "address", old.Addr)
			return
		}
		n.log.Debug("DHCP lease renewed", "interface", i.String(), "address", now.Addr, "expires", now.Expire)
	})
}

// bring configures an interface for the first time. The client is nil where there
// is no lease to keep.
func (n *Network) bring(ctx context.Context, k int) (*dhcpClient, Lease, error) {
	i := n.plan.Interfaces[k]
	link, err := waitForLink(ctx, i.matches)
	if err != nil {
		return nil, Lease{}, fmt.Errorf("wait for network interface %s: %w", i, err)
	}
	if err := i.setUp(link); err != nil || !i.DHCP {
		return nil, Lease{}, err
	}
	// A driver may take its time to find a carrier; until then nothing gets out.
	if link, err = waitForLink(ctx, func(l net.Interface) bool { return l.Index == link.Index && l.Flags&net.FlagRunning != 0 }); err != nil {
		return nil, Lease{}, fmt.Errorf("wait for a carrier on %s: %w", i, err)
	}
	client := &dhcpClient{link: link, hostname: n.plan.Hostname}
	lease, err := client.acquire(ctx)
	if err != nil {
		return nil, Lease{}, fmt.Errorf("get a lease for %s: %w", link.Name, err)
	}
	return client, lease, n.apply(k, link, Lease{}, lease)
}

// leaseMetric is the metric of the first interface's leased routes. Routes the
// host has set itself have none and win.
const leaseMetric = 100

// apply makes an interface have what a lease says, in place of an older one. The
// zero Lease takes everything away.
func (n *Network) apply(k int, link net.Interface, old, now Lease) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	rt, err := dialRoute()
	if err != nil {
		return err
	}
	defer rt.Close()
	metric := uint32(leaseMetric + k)
	var errs []error
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s on %s: %w", what, link.Name, err))
		}
	}
	if now.MTU > 0 && n.plan.Interfaces[k].MTU == 0 && now.MTU != old.MTU {
		note("take the server's MTU", setMTU(link.Name, now.MTU))
	}
	if now.Addr.IsValid() {
		note("add "+now.Addr.String(), rt.lendAddress(link.Index, now.Addr, now.Expire))
	}
	for _, r := range now.Routes {
		if slices.Contains(old.Routes, r) && old.Addr == now.Addr {
			continue
		}
		off := r.Via.IsValid() && !onLink([]netip.Prefix{now.Addr}, r.Via)
		note("add the route to "+r.To.String(), rt.lendRoute(link.Index, r, off, metric))
	}
	for _, r := range old.Routes {
		if !slices.Contains(now.Routes, r) {
			note("delete the route to "+r.To.String(), rt.deleteRoute(link.Index, r, metric))
		}
	}
	if old.Addr.IsValid() && old.Addr != now.Addr {
		note("delete "+old.Addr.String(), rt.deleteAddress(link.Index, old.Addr))
	}
	n.leases[k] = now
	if !slices.Equal(old.DNS, now.DNS) || old.Domain != now.Domain {
		note("write "+n.resolv, n.writeResolvConf())
	}
	if now.Hostname != "" && now.Hostname != old.Hostname && n.named != nil {
		n.named(now.Hostname)
	}
	return errors.Join(errs...)
}

// writeResolvConf is called with n.mu held. What the host has named comes first.
func (n *Network) writeResolvConf() error {
	servers := slices.Clone(n.plan.DNS)
	var domains []string
	for _, l := range n.leases {
		servers = append(servers, l.DNS...)
		domains = append(domains, l.Domain)
	}
	return boot.WriteEtc(n.resolv, ResolvConf(servers, domains), boot.EtcScratch)
}

// interfaceTimeout is how long a boot waits for interfaces that the host
// promised and for leases. Only containers that share the guest's network wait
// with it.
const interfaceTimeout = 5 * time.Second

// Timeout bounds ctx by the time that a boot waits for its network.
func Timeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, interfaceTimeout)
}
