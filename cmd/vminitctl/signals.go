package main

import (
	"context"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// forwarded are the signals that are the container's to handle while it runs.
var forwarded = []os.Signal{
	unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT,
}

// impatience is how many interrupts end a container that ignores them: the
// first process of a pid namespace has no default action for signals.
const impatience = 3

// signals decides what becomes of signals: at first those that ask for the end
// cancel the work, later they all go to the container.
type signals struct {
	incoming chan os.Signal
	cancel   context.CancelCauseFunc
	done     chan struct{}
	watching sync.WaitGroup

	mu      sync.Mutex // guards what follows
	forward func(unix.Signal)
	asked   int // how often somebody has asked for the end
}

// interrupted is why a context ended that a signal has ended.
type interrupted struct{ signal os.Signal }

func (e interrupted) Error() string { return e.signal.String() }

// watchSignals returns a context that ends when a signal asks for it.
func watchSignals(ctx context.Context) (context.Context, *signals) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &signals{incoming: make(chan os.Signal, 16), cancel: cancel, done: make(chan struct{})}
	signal.Notify(s.incoming, forwarded...)
	s.watching.Go(func() {
		for {
			select {
			case sig := <-s.incoming:
				s.handle(sig.(unix.Signal))
			case <-s.done:
				return
			}
		}
	})
	return ctx, s
}

// asksForEnd: what we end by as long as there is nobody else to take it.
func asksForEnd(sig unix.Signal) bool {
	return sig == unix.SIGINT || sig == unix.SIGTERM || sig == unix.SIGHUP || sig == unix.SIGQUIT
}

func (s *signals) handle(sig unix.Signal) {
	ends := asksForEnd(sig)
	s.mu.Lock()
	if ends {
		s.asked++
	}
	forward, enough := s.forward, ends && s.asked >= impatience
	s.mu.Unlock()
	switch {
	case forward != nil && !enough:
		forward(sig)
	case ends:
		s.cancel(interrupted{sig})
	}
}

// forwardTo sends signals to f from now on, which is called by one goroutine.
func (s *signals) forwardTo(f func(unix.Signal)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forward, s.asked = f, 0
}

// stop gives signals their usual effect again.
func (s *signals) stop() {
	signal.Stop(s.incoming)
	close(s.done)
	s.watching.Wait()
	s.cancel(nil)
}
