package vsockstream

import (
	"context"
	"errors"
	"net"
	"sync"
)

// Proxy joins two connections: what comes from one goes to the other, each
// direction ends by itself and is passed on as a half-close. It returns when
// both have ended, when a peer that has ended its direction is gone altogether
// (so that the other side need not honour half-close), or when ctx ends. Both
// connections are closed then. The error is of the direction that failed; an
// ended ctx gives its cause.
func Proxy(ctx context.Context, a, b Conn) error {
	var watchers sync.WaitGroup
	defer watchers.Wait() // after the Closes, which end them
	defer a.Close()
	defer b.Close()
	ab, err := startKept(b, a)
	if err != nil {
		return err
	}
	defer ab.Close()
	ba, err := startKept(a, b)
	if err != nil {
		return err
	}
	defer ba.Close()

	gone := make(chan struct{}, 2)
	abDone, baDone := ab.Done(), ba.Done()
	for abDone != nil || baDone != nil {
		select {
		case <-abDone:
			abDone = nil
			watchers.Go(func() { watchGone(a, gone) })
		case <-baDone:
			baDone = nil
			watchers.Go(func() { watchGone(b, gone) })
		case <-gone:
			return ignoreClosed(ab, ba)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return ignoreClosed(ab, ba)
}

func startKept(dst, src Conn) (*Pump, error) {
	p, err := NewPump(PumpConfig{Dst: dst, Src: src, KeepDst: true, KeepSrc: true})
	if err != nil {
		return nil, err
	}
	return p, p.Start()
}

// watchGone sends when the peer of c can no longer receive. It ends when c is
// closed.
func watchGone(c Conn, gone chan<- struct{}) {
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool { return deaf(int(fd)) })
	}
	if err == nil {
		gone <- struct{}{}
	}
}

// ignoreClosed closes the pumps and joins what went wrong before that.
func ignoreClosed(pumps ...*Pump) error {
	var errs []error
	for _, p := range pumps {
		p.Close()
		if err := p.Err(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
