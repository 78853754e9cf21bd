package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"vminit/internal/sys"
)

// terminal is the terminal that this program runs on.
type terminal struct {
	fd int
}

// openTerminal returns the terminal on stdin, or if that is none on stdout.
func openTerminal() (*terminal, error) {
	for _, f := range []*os.File{os.Stdin, os.Stdout} {
		if fd := int(f.Fd()); term.IsTerminal(fd) {
			return &terminal{fd}, nil
		}
	}
	return nil, sys.Invalidf("--tty: neither stdin nor stdout is a terminal; leave -t away")
}

// size is the terminal's; nil if it has none.
func (t *terminal) size() *specs.Box {
	w, h, err := term.GetSize(t.fd)
	if err != nil || w <= 0 || h <= 0 {
		return nil
	}
	return &specs.Box{Width: uint(w), Height: uint(h)}
}

// raw hands every key over untouched until restore is called.
func (t *terminal) raw() (restore func(), err error) {
	old, err := term.MakeRaw(t.fd)
	if err != nil {
		return nil, fmt.Errorf("raw terminal: %w", err)
	}
	return func() { _ = term.Restore(t.fd, old) }, nil
}

// follow tells the process the terminal's size, now and whenever it changes,
// until ctx ends.
func (t *terminal) follow(ctx context.Context, g *guest, id, execID string) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	defer signal.Stop(changed)
	for {
		if s := t.size(); s != nil {
			// A process that has ended has no size; nothing is lost.
			_, _ = g.task.ResizePty(ctx, &taskv3.ResizePtyRequest{ID: id, ExecID: execID, Width: uint32(s.Width), Height: uint32(s.Height)})
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
