package vhostvsock

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// dialRequest is a Dial under way. Once posted, fd belongs to the loop, and the
// loop sends exactly one result.
type dialRequest struct {
	port   uint32
	fd     int
	end    *endState
	result chan dialResult // buffered
}

type dialResult struct {
	port uint32 // the host's
	err  error
}

var (
	errNoGuest   = fmt.Errorf("the guest has not started its vsock driver: %w", unix.ENOTCONN)
	errRefused   = fmt.Errorf("nothing listens on this port in the guest: %w", unix.ECONNREFUSED)
	errGuestGone = fmt.Errorf("the guest was reset or powered off: %w", unix.ECONNRESET)
	errTooMany   = fmt.Errorf("the device has %d connections already: %w", maxFlows, unix.EAGAIN)
	errCancelled = errors.New("cancelled")
)

// Dial connects to a port on which the guest listens. A port without listener is an
// error wrapping ECONNREFUSED, a guest that is not up yet (or paused) one wrapping
// ENOTCONN; both come at once, and the caller decides whether to try again. A guest
// that is up and does not answer is waited for until ctx ends.
func (d *Device) Dial(ctx context.Context, port uint32) (*Conn, error) {
	c, err := d.dial(ctx, port)
	if err != nil {
		return nil, fmt.Errorf("dial vsock %d:%d: %w", d.cfg.GuestCID, port, err)
	}
	return c, nil
}

func (d *Device) dial(ctx context.Context, port uint32) (*Conn, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	d.mu.Lock()
	s := d.current
	d.mu.Unlock()
	if s == nil {
		return nil, errNoGuest
	}
	fd, app, err := socketPair()
	if err != nil {
		return nil, err
	}
	req := &dialRequest{port: port, fd: fd, end: &endState{}, result: make(chan dialResult, 1)}
	if !s.mail.post(command{kind: cmdDial, dial: req}) {
		_ = unix.Close(fd)
		_ = app.Close()
		return nil, errNoGuest
	}
	var res dialResult
	select {
	case res = <-req.result:
	case <-ctx.Done():
		s.mail.post(command{kind: cmdCancel, dial: req})
		<-req.result // at once: the loop never blocks
		res.err = context.Cause(ctx)
	}
	if res.err != nil {
		_ = app.Close()
		return nil, res.err
	}
	return &Conn{
		unix:   app,
		local:  Addr{hostCID, res.port},
		remote: Addr{uint32(d.cfg.GuestCID), port},
		end:    req.end,
	}, nil
}

// firstPort is where the ports given to Dial start, far above those that people
// listen on.
const firstPort = 1 << 30

// newPort returns a host port that no connection to guest port uses.
func (s *session) newPort(guest uint32) uint32 {
	for {
		p := firstPort + s.dev.ports.Add(1)%firstPort
		if _, used := s.flows[flowKey{p, guest}]; !used {
			return p
		}
	}
}

// startDial opens a flow for a dialRequest, or answers that there can be none.
func (s *session) startDial(req *dialRequest) {
	fail := func(err error) {
		_ = unix.Close(req.fd)
		req.result <- dialResult{err: err}
	}
	switch {
	case !s.rings[rxRing].running() || !s.rings[txRing].running():
		fail(errNoGuest)
		return
	case s.full():
		fail(errTooMany)
		return
	}
	f := s.addFlow(flowKey{s.newPort(req.port), req.port}, req.fd, req.end)
	f.dial = req
	f.owe = oweRequest
	s.schedule(f)
}

// answerDial ends flowRequested: the request's result is err or success. After a
// failure the flow is gone.
func (s *session) answerDial(f *flow, err error) {
	req := f.dial
	f.dial = nil
	if err != nil {
		s.remove(f)
		req.result <- dialResult{err: err}
		return
	}
	if err := s.open(f); err != nil {
		s.reset(f.key, socketStream)
		s.remove(f)
		req.result <- dialResult{err: err}
		return
	}
	req.result <- dialResult{port: f.key.host}
}

// cancelDial gives a request up that has no result yet.
func (s *session) cancelDial(req *dialRequest) {
	for _, f := range s.flows {
		if f.dial == req {
			if f.owe&oweRequest == 0 { // the guest knows of it
				s.reset(f.key, socketStream)
			}
			s.answerDial(f, errCancelled)
			return
		}
	}
}
