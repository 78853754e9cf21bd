package tasksvc

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Shutdown ends the server: it closes the listeners, waits until every call
// has been answered to the last byte and the peers have taken it, or ctx is
// done, and closes the connections. Streams end when what they stream does:
// close the Exchange first. Shutdown may be called once.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	for l := range s.listeners {
		l.Close()
	}
	s.mu.Unlock()

	err := s.waitAnswered(ctx)
	if err == nil {
		s.linger(ctx)
	}
	s.ttrpc.Close()
	for _, c := range s.open() {
		c.Close()
	}
	s.calls.Wait()
	return err
}

// lingerTimeout is how long a peer has for closing its end after ours.
const lingerTimeout = time.Second

// linger tells the peers that nothing more will come, and waits for them to
// close. A write to a vsock returns before the device has the bytes, and a
// machine that ends at once takes them along: only a peer's close shows that
// everything has arrived.
func (s *Server) linger(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lingerTimeout)
	defer cancel()
	conns := slices.DeleteFunc(s.open(), func(c *conn) bool { return c.closeWrite() != nil }) // without those that are gone
	for _, c := range conns {
		select {
		case <-c.ended:
		case <-ctx.Done():
			return
		}
	}
}

// waitAnswered returns when no call is unanswered.
func (s *Server) waitAnswered(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		left := 0
		for _, c := range s.open() {
			left += c.unanswered()
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("shut down: %d calls are unanswered: %w", left, ctx.Err())
		case <-tick.C:
		}
	}
}

func (s *Server) isStopped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopped
}
