package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"vminit/vsockstream"
)

// stdio are the streams of one process and the bytes that move through them.
type stdio struct {
	in, out, err vsockstream.Conn // nil if not wanted
	// URIs for the guest; "" for what is not wanted
	stdin, stdout, stderr string

	output sync.WaitGroup
	ended  chan struct{} // closed when out and err have ended
	broken chan struct{} // closed when one of them cannot be written on our side
	lost   error         // why, once broken is closed
	once   sync.Once     // of broken and lost

	writing atomic.Int32 // how many bytes' readers are being waited for
	moved   atomic.Int64 // when the last ones moved, in ns since 1970
}

// drainTimeout is how long the guest may keep output back after its process has
// ended. It gives it at once; this is for one that does not.
const drainTimeout = 5 * time.Second

// openStdio opens the streams: stdin if it is wanted, stdout always, stderr
// unless there is a terminal, which has but one output.
func openStdio(ctx context.Context, g *guest, stdin, tty bool) (s *stdio, err error) {
	s = &stdio{ended: make(chan struct{}), broken: make(chan struct{})}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	open := func(conn *vsockstream.Conn, uri *string) error {
		id := randomStreamID()
		c, err := g.openStream(ctx, id)
		if err != nil {
			return err
		}
		*conn, *uri = c, fmt.Sprintf("stream://%d", id)
		return nil
	}
	if stdin {
		if err := open(&s.in, &s.stdin); err != nil {
			return nil, err
		}
	}
	if err := open(&s.out, &s.stdout); err != nil {
		return nil, err
	}
	if !tty {
		if err := open(&s.err, &s.stderr); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// randomStreamID is an id that no other client of the guest is likely to use;
// one in use is refused.
func randomStreamID() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand
	return binary.NativeEndian.Uint32(b[:])
}

// start moves output to stdout and stderr until it ends.
func (s *stdio) start(stdout, stderr io.Writer) {
	signal.Ignore(unix.SIGPIPE) // it would end us where we have to end the process
	s.move(outlet{s, stdout}, s.out)
	s.move(outlet{s, stderr}, s.err)
	go func() {
		s.output.Wait()
		close(s.ended)
	}()
}

func (s *stdio) move(w outlet, c vsockstream.Conn) {
	if c == nil {
		return
	}
	s.output.Go(func() {
		if _, err := io.Copy(w, c); err != nil {
			_, _ = io.Copy(io.Discard, c) // it ends when the process does
		}
	})
}

// outlet is one of our outputs. It notes whether somebody waits for its reader.
type outlet struct {
	s *stdio
	w io.Writer
}

func (o outlet) Write(b []byte) (int, error) {
	o.s.writing.Add(1)
	n, err := o.w.Write(b)
	if err != nil {
		o.s.once.Do(func() {
			o.s.lost = err
			close(o.s.broken)
		})
	}
	o.s.moved.Store(time.Now().UnixNano())
	o.s.writing.Add(-1)
	return n, err
}

// drain waits, when the process has ended, for the rest of its output: as long as
// our readers like, but not for a guest that keeps it back.
func (s *stdio) drain(ctx context.Context) error {
	began := time.Now()
	tick := time.NewTicker(drainTimeout / 10)
	defer tick.Stop()
	for {
		select {
		case <-s.ended:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case now := <-tick.C:
			last := time.Unix(0, max(began.UnixNano(), s.moved.Load()))
			if s.writing.Load() == 0 && now.Sub(last) > drainTimeout {
				return errors.New("the guest does not say that the output has ended: some of it may be missing")
			}
		}
	}
}

// endBroken ends a process whose output nobody reads any more, until ctx ends, as
// a write to the pipe itself would have. kill sends it a signal. A first process
// of a pid namespace gets a SIGPIPE only if it handles it.
func (s *stdio) endBroken(ctx context.Context, kill func(unix.Signal)) {
	for _, sig := range []unix.Signal{unix.SIGPIPE, unix.SIGKILL} {
		select {
		case <-s.broken:
			kill(sig)
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return
		}
	}
}

// status is the exit status to tell: of a process that lost its reader, that of
// one which a SIGPIPE has ended. Output that could not be written otherwise is an
// error.
func (s *stdio) status(exit uint32) (int, error) {
	select {
	case <-s.broken:
	default:
		return int(exit), nil
	}
	if errors.Is(s.lost, unix.EPIPE) {
		return 128 + int(unix.SIGPIPE), nil
	}
	return 0, fmt.Errorf("pass the output on: %w", s.lost)
}

// feed moves r to the process, half-closes in the end, and calls closed. It
// blocks in reading r for as long as that takes.
func (s *stdio) feed(r io.Reader, closed func()) {
	_, _ = io.Copy(s.in, r) // fails when the process does not read any more
	_ = s.in.CloseWrite()
	closed()
}

// Close ends all streams.
func (s *stdio) Close() {
	for _, c := range []vsockstream.Conn{s.in, s.out, s.err} {
		if c != nil {
			_ = c.Close()
		}
	}
}
