package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"

	forwardapi "vminit/api/services/socketforward/v1"
	"vminit/vsockstream"
)

// accepter is an Accept that is being served.
type accepter struct {
	requests chan *forwardapi.ConnectRequest
	done     chan struct{} // closed when it has ended
	silent   bool          // has left a question open; guarded by SocketForward.mu
}

// connect has the host open a stream for a connection and claims it.
func (f *SocketForward) connect(fw *forward) (vsockstream.Conn, error) {
	ctx, cancel := context.WithTimeout(f.ctx, f.timeout)
	defer cancel()
	tried := map[*accepter]bool{}
	refused := fmt.Errorf("no host has asked for connections (Accept) within %v", f.timeout)
	for {
		a := f.nextAccepter(ctx, fw, tried)
		if a == nil {
			return nil, refused
		}
		tried[a] = true
		id := f.newStreamID()
		why, err := f.ask(ctx, a, fw.id, id)
		switch {
		case err != nil: // it has gone: another may come
			refused = err
		case why != "":
			refused = fmt.Errorf("the host does not connect: %.*s", maxForwardText, why)
		default:
			f.mu.Lock()
			fw.last = a
			f.mu.Unlock()
			return f.hub.Claim(ctx, id)
		}
	}
}

// nextAccepter returns an Accept that has not been tried, the one that knows
// the forward first; if there is none at all it waits. nil means that all have
// been tried, or that ctx has ended.
func (f *SocketForward) nextAccepter(ctx context.Context, fw *forward, tried map[*accepter]bool) *accepter {
	for {
		f.mu.Lock()
		a := fw.last
		if _, alive := f.accepters[a]; !alive || tried[a] || a.silent {
			a = nil
			for other := range f.accepters {
				if !tried[other] && (a == nil || a.silent) {
					a = other
				}
			}
		}
		wait := a == nil && len(f.accepters) == 0
		changed := f.changed
		f.mu.Unlock()
		if !wait {
			return a
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

var errAcceptEnded = errors.New("the host's Accept has ended")

// ask offers a connection to an Accept. why is the host's reason for not
// taking it.
func (f *SocketForward) ask(ctx context.Context, a *accepter, forwardID, streamID string) (why string, err error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout/3)
	defer cancel()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		a.silent = err != nil
	}()
	answer := make(chan string, 1)
	f.mu.Lock()
	f.pending[streamID] = answer
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.pending, streamID)
	}()
	select {
	case a.requests <- &forwardapi.ConnectRequest{StreamId: streamID, ForwardId: forwardID}:
	case <-a.done:
		return "", errAcceptEnded
	case <-ctx.Done():
		return "", fmt.Errorf("offer a connection to the host: %w", ctx.Err())
	}
	select {
	case why = <-answer:
		return why, nil
	case <-a.done:
		return "", errAcceptEnded
	case <-ctx.Done():
		return "", fmt.Errorf("wait for the host to connect: %w", ctx.Err())
	}
}

// newStreamID returns a stream id that hosts do not choose themselves: with
// numbers as ids it is one of the upper half.
func (f *SocketForward) newStreamID() string {
	n := rand.Uint64() // of crypto/rand half a megabyte would come along
	if f.framing == vsockstream.FramingString {
		return fmt.Sprintf("socketfwd-%016x", n)
	}
	return strconv.FormatUint(uint64(uint32(n)|1<<31), 10)
}

// Accept implements SocketForward.Accept.
func (f *SocketForward) Accept(ctx context.Context, stream forwardapi.TTRPCSocketForward_AcceptServer) error {
	return guardStream(f.log, "SocketForward.Accept", func() error {
		a := &accepter{requests: make(chan *forwardapi.ConnectRequest), done: make(chan struct{})}
		f.setAccepter(a, true)
		defer f.setAccepter(a, false)
		answers := make(chan error, 1)
		go func() {
			answers <- Guard(f.log, "SocketForward.Accept", func() error { return f.takeAnswers(stream) })
		}()
		for {
			select {
			case r := <-a.requests:
				if err := stream.Send(r); err != nil {
					return err
				}
			case err := <-answers:
				return err
			case <-ctx.Done():
				return ctx.Err()
			case <-f.ctx.Done():
				return nil
			}
		}
	})
}

func (f *SocketForward) setAccepter(a *accepter, there bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if there {
		f.accepters[a] = struct{}{}
	} else {
		delete(f.accepters, a)
		close(a.done)
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// takeAnswers takes the host's answers until it sends no more. An answer to
// nothing that is asked, such as one that comes too late, is ignored.
func (f *SocketForward) takeAnswers(stream forwardapi.TTRPCSocketForward_AcceptServer) error {
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		f.mu.Lock()
		answer := f.pending[r.StreamId]
		delete(f.pending, r.StreamId)
		f.mu.Unlock()
		if answer != nil {
			answer <- r.Error
		}
	}
}
