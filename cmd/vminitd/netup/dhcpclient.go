package netup

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"time"
)

// dhcpClient gets a lease for one interface and keeps it: RFC 2131 section 4.4.
// It is used by one goroutine.
type dhcpClient struct {
	link     net.Interface
	hostname string    // sent along; "" for none
	began    time.Time // of the present exchange
	asked    time.Time // when the last message went out: a lease counts from there
}

// Retransmission: the first again soon, because a guest waits for it, then at
// twice the distance, with a bit of chance (RFC 2131 section 4.1).
const (
	firstRetry = time.Second
	lastRetry  = 32 * time.Second
)

// errRefused says that a server does not let us have the address (DHCPNAK).
var errRefused = errors.New("the DHCP server refused the address")

// acquire asks everybody for a lease until there is one or ctx ends.
func (c *dhcpClient) acquire(ctx context.Context) (Lease, error) {
	s, err := openRaw(c.link.Index)
	if err != nil {
		return Lease{}, err
	}
	defer s.close()
	c.began = time.Now()
	for {
		offered, err := c.exchange(ctx, s, c.message(discover), offer, time.Time{})
		if err != nil {
			return Lease{}, err
		}
		want := c.message(request)
		want.xid = offered.xid
		want.options[optRequested] = offered.yiaddr.AsSlice()
		if server := offered.options[optServer]; len(server) == 4 {
			want.options[optServer] = server
		}
		// A server that offers and then falls silent: ask everybody again.
		got, err := c.exchange(ctx, s, want, ack, time.Now().Add(8*time.Second))
		switch {
		case err == nil:
			return got.lease()
		case !errors.Is(err, errRefused) && !errors.Is(err, os.ErrDeadlineExceeded):
			return Lease{}, err
		}
	}
}

// extend asks the server of a lease, or from the time to rebind on any server,
// for more time. until bounds the asking.
func (c *dhcpClient) extend(ctx context.Context, l Lease, rebind bool, until time.Time) (Lease, error) {
	var s *dhcpSocket
	var err error
	if rebind || !l.Server.IsValid() {
		s, err = openRaw(c.link.Index)
	} else {
		s, err = openUDP(c.link.Name, l.Addr.Addr(), l.Server)
	}
	if err != nil {
		return Lease{}, err
	}
	defer s.close()
	c.began = time.Now()
	want := c.message(request)
	want.ciaddr = l.Addr.Addr()
	got, err := c.exchange(ctx, s, want, ack, until)
	if err != nil {
		return Lease{}, err
	}
	return got.lease()
}

// exchange sends a message, again and again, until an answer of the right kind
// comes. A zero until means for ever.
func (c *dhcpClient) exchange(ctx context.Context, s *dhcpSocket, m dhcpMessage, want messageType, until time.Time) (dhcpMessage, error) {
	retry := firstRetry
	for {
		m.secs = uint16(min(time.Since(c.began)/time.Second, 0xffff))
		// A send that fails (the link has no carrier yet) is one that got lost.
		c.asked = time.Now()
		sendErr := s.send(m.encode())
		deadline := time.Now().Add(retry + time.Duration(rand.Int64N(int64(retry/4))))
		if !until.IsZero() && deadline.After(until) {
			deadline = until
		}
		answer, err := c.await(ctx, s, m, want, deadline)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return answer, err
		}
		if !until.IsZero() && !time.Now().Before(until) {
			return dhcpMessage{}, fmt.Errorf("no answer from a DHCP server: %w", errors.Join(sendErr, err))
		}
		retry = min(2*retry, lastRetry)
	}
}

// await reads until the wanted answer or a refusal.
func (c *dhcpClient) await(ctx context.Context, s *dhcpSocket, m dhcpMessage, want messageType, deadline time.Time) (dhcpMessage, error) {
	for {
		answer, err := s.receive(ctx, deadline, m)
		if err != nil {
			return dhcpMessage{}, err
		}
		switch {
		case answer.kind() == nak && want == ack:
			return dhcpMessage{}, errRefused
		case answer.kind() != want:
		default:
			if _, err := answer.lease(); err == nil { // or it is of no use
				return answer, nil
			}
		}
	}
}

// message is one of ours, without what differs.
func (c *dhcpClient) message(kind messageType) dhcpMessage {
	m := dhcpMessage{op: 1, xid: rand.Uint32(), mac: c.link.HardwareAddr, options: map[byte][]byte{
		optType:     {byte(kind)},
		optClientID: append([]byte{1}, c.link.HardwareAddr...),
		optMaxSize:  binary.BigEndian.AppendUint16(nil, dhcpMax),
		optWanted:   {optMask, optRoutes, optRouter, optDNS, optHostname, optDomain, optMTU, optLease, optRenew, optRebind},
	}}
	if c.hostname != "" && len(c.hostname) < 64 {
		m.options[optHostname] = []byte(c.hostname)
	}
	return m
}

// hold keeps a lease until ctx ends: it renews it in time and, when it is lost,
// asks for a new one. changed is told of every change, with the lease that was
// before; its own failures it reports itself.
func (c *dhcpClient) hold(ctx context.Context, l Lease, changed func(old, now Lease)) {
	for l.Expire > 0 { // or it is for ever
		next, err := c.keep(ctx, l, c.asked)
		if ctx.Err() != nil {
			return
		}
		if err != nil { // lost
			changed(l, Lease{})
			l = Lease{}
			if next, err = c.acquire(ctx); err != nil {
				return // the link is gone, or ctx
			}
		}
		changed(l, next)
		l = next
	}
}

// keep waits for the time to renew and returns the extended lease; an error once
// it has expired or was refused.
func (c *dhcpClient) keep(ctx context.Context, l Lease, got time.Time) (Lease, error) {
	for _, phase := range []struct {
		from, until time.Duration
		rebind      bool
	}{{l.Renew, l.Rebind, false}, {l.Rebind, l.Expire, true}} {
		timer := time.NewTimer(time.Until(got.Add(phase.from)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return Lease{}, ctx.Err()
		}
		next, err := c.extend(ctx, l, phase.rebind, got.Add(phase.until))
		if err == nil || ctx.Err() != nil || errors.Is(err, errRefused) {
			return next, err
		}
	}
	timer := time.NewTimer(time.Until(got.Add(l.Expire))) // sockets that fail at once
	defer timer.Stop()
	select {
	case <-timer.C:
		return Lease{}, errors.New("the lease has expired")
	case <-ctx.Done():
		return Lease{}, ctx.Err()
	}
}
