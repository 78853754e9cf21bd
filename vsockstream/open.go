package vsockstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// Open performs the host's half of the handshake on a fresh connection to the
// guest's stream port: it sends id and awaits its echo. Afterwards c carries
// the stream's bytes and has no deadline. On an error c is of no further use;
// the caller closes it in either case. The end of ctx ends the attempt.
func Open(ctx context.Context, c Conn, f Framing, id string) error {
	return open(ctx, c, f, id, func(frame []byte) error {
		_, err := c.Write(frame)
		return err
	})
}

// OpenWithFDs is Open that also hands the daemon descriptors to use in the
// stream's place, at most MaxFDs, by SCM_RIGHTS beside the id, unix(7). The
// caller keeps its own; c then carries no bytes and can be closed once the
// daemon has claimed the stream.
func OpenWithFDs(ctx context.Context, c *net.UnixConn, f Framing, id string, fds ...int) error {
	return open(ctx, c, f, id, func(frame []byte) error {
		_, _, err := c.WriteMsgUnix(frame, unix.UnixRights(fds...), nil)
		return err
	})
}

func open(ctx context.Context, c Conn, f Framing, id string, send func([]byte) error) error {
	frame, err := f.encode(id)
	if err != nil {
		return err
	}
	err = withContext(ctx, c, func() error {
		if err := send(frame); err != nil {
			return fmt.Errorf("send the id: %w", err)
		}
		return awaitEcho(c, f, id)
	})
	if err != nil {
		return fmt.Errorf("open stream %.64q: %w", id, err)
	}
	return nil
}

// awaitEcho reads the guest's answer, which is the id or a refusal.
func awaitEcho(r io.Reader, f Framing, id string) error {
	var got string
	var err error
	if f == FramingString {
		got, err = decodeText(r)
	} else {
		got, err = f.decode(r)
	}
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the guest refused it (it closed the connection: the id is in use, or this peer is not allowed): %w", err)
	case err != nil:
		return fmt.Errorf("await the echo: %w", err)
	case got != id && f == FramingString:
		return fmt.Errorf("the guest refused it: %.256q", got)
	case got != id:
		return fmt.Errorf("the guest echoed another id, %s; does it use %s framing?", got, f)
	}
	return nil
}
