package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"vminit/vsockstream"
)

// stdio are the streams of one process and the bytes that move through them.
type stdio struct {
	in, out, err vsockstream.Conn // nil if not wanted
	// URIs for the guest; "" for what is not wanted
	stdin, stdout, stderr string

	output  sync.WaitGroup
	drained chan struct{} // closed when out and err have ended
}

// openStdio opens the streams: stdin if it is wanted, stdout always, stderr
// unless there is a terminal, which has but one output.
func openStdio(ctx context.Context, g *guest, stdin, tty bool) (s *stdio, err error) {
	s = &stdio{drained: make(chan struct{})}
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
	move := func(w io.Writer, c vsockstream.Conn) {
		if c == nil {
			return
		}
		s.output.Go(func() {
			if _, err := io.Copy(w, c); err != nil {
				_, _ = io.Copy(io.Discard, c) // our reader is gone: let the process go on
			}
		})
	}
	move(stdout, s.out)
	move(stderr, s.err)
	go func() {
		s.output.Wait()
		close(s.drained)
	}()
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
