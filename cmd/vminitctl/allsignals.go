package main

import (
	"context"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// allSignals passes every signal on that can be caught, but those that are about
// ourselves: what runc's exec and run do. Until there is somebody to pass them on
// to, the ones that ask for the end have us end.
type allSignals struct {
	incoming chan os.Signal
	cancel   context.CancelCauseFunc
	done     chan struct{}
	watching sync.WaitGroup

	mu      sync.Mutex // guards forward
	forward func(unix.Signal)
}

// watchAllSignals returns a context that ends when a signal asks for it.
func watchAllSignals(ctx context.Context) (context.Context, *allSignals) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &allSignals{incoming: make(chan os.Signal, 64), cancel: cancel, done: make(chan struct{})}
	signal.Notify(s.incoming)
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

func (s *allSignals) handle(sig unix.Signal) {
	switch sig {
	case unix.SIGCHLD, unix.SIGURG, unix.SIGWINCH, unix.SIGPIPE: // ours, or the Go runtime's
		return
	case unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU: // the terminal's job control is about us
		return
	}
	s.mu.Lock()
	forward := s.forward
	s.mu.Unlock()
	if forward != nil {
		forward(sig)
		return
	}
	s.endBy(sig)
}

// endBy has us end if that is what a signal asks for.
func (s *allSignals) endBy(sig unix.Signal) {
	if asksForEnd(sig) {
		s.cancel(interrupted{sig})
	}
}

// forwardTo sends signals to f from now on, which is called by one goroutine.
func (s *allSignals) forwardTo(f func(unix.Signal)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forward = f
}

// stop gives signals their usual effect again.
func (s *allSignals) stop() {
	signal.Stop(s.incoming)
	close(s.done)
	s.watching.Wait()
	s.cancel(nil)
}
