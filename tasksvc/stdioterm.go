package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/vsockstream"
)

// openTerminal opens the streams of a terminal; until the child has its pty, its
// fds are /dev/null.
func (s *stdio) openTerminal(ctx context.Context, hub *vsockstream.Hub) error {
	if err := s.openNull(); err != nil {
		return err
	}
	for i, uri := range []string{s.uris.stdin, s.uris.stdout} {
		if uri == "" {
			continue
		}
		if i == 1 && uri == s.uris.stdin && schemeOf(uri) != "rpcio" {
			return sys.Invalidf("stdin and stdout of a terminal need streams of their own")
		}
		end, err := s.openEnd(ctx, hub, uri, i)
		if err != nil {
			return fmt.Errorf("terminal %s: %w", uri, err)
		}
		s.ends[i] = end
	}
	return nil
}

// attachTerminal connects the streams with the pty's master, which is the
// stdio's from now on.
func (s *stdio) attachTerminal(master int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := unix.SetNonblock(master, true); err != nil {
		unix.Close(master)
		return fmt.Errorf("terminal: %w", err)
	}
	s.tty = os.NewFile(uintptr(master), "pty")
	var err error
	if s.ends[0] != nil {
		s.in, err = vsockstream.NewPump(vsockstream.PumpConfig{Dst: s.tty, Src: s.ends[0], KeepDst: true})
		s.ends[0] = nil
		if err != nil {
			return err
		}
	}
	if s.ends[1] == nil { // nobody looks: but somebody must read
		if s.ends[1], err = os.OpenFile("/dev/null", os.O_WRONLY, 0); err != nil {
			return err
		}
	}
	pump, err := vsockstream.NewPump(vsockstream.PumpConfig{Dst: s.ends[1], Src: s.tty, KeepSrc: true, Reopens: true})
	s.ends[1] = nil
	if err != nil {
		return err
	}
	s.out = append(s.out, pump)
	return nil
}

// resize sets the size of the terminal.
func (s *stdio) resize(width, height uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tty == nil {
		return sys.Mark(sys.ErrState, errors.New("the process has no terminal"))
	}
	rc, err := s.tty.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = rc.Control(func(fd uintptr) {
		ioctlErr = setSize(int(fd), width, height)
	})
	return errors.Join(err, ioctlErr)
}

func setSize(tty int, width, height uint32) error {
	if err := unix.IoctlSetWinsize(tty, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(height), Col: uint16(width)}); err != nil {
		return fmt.Errorf("set the size of the terminal: %w", err)
	}
	return nil
}
