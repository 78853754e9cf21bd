package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/vsockstream"
)

// handover is what a daemon of this machine gets of our descriptors for a
// process.
type handover struct {
	consoleSocket string // gets the terminal, in place of stdio; "" is none
	preserve      int    // descriptors after those of socket activation
	inherited     []int  // both, from 3 on
	listen        int    // how many are those of socket activation

	stream vsockstream.Conn
	uri    string // for stdin, stdout and stderr
}

// inherit finds out what we have got beside stdio. It comes before anything that
// opens files: what we open ourselves is close-on-exec, what we got is not.
func (h *handover) inherit() (err error) {
	if h.preserve < 0 {
		return sys.Invalidf("--preserve-fds %d is negative", h.preserve)
	}
	if h.listen, err = inheritedSockets(); err != nil {
		return err
	}
	n := h.listen + h.preserve
	if most := vsockstream.MaxFDs - 3; n > most {
		return sys.Invalidf("%d descriptors are more than the %d that can be handed over", n, most)
	}
	for fd := 3; fd < 3+n; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC != 0 {
			return sys.Invalidf("descriptor %d is not open: %d from 3 on are to be passed on", fd, n)
		}
		h.inherited = append(h.inherited, fd)
	}
	return nil
}

// open hands our descriptors over. The caller closes the handover when the daemon
// has created or started the process.
func (h *handover) open(ctx context.Context, g *guest) error {
	if !g.local {
		return sys.Unsupportedf("descriptors cannot be handed over to a daemon in a VM")
	}
	fds := []int{0, 1, 2}
	if h.consoleSocket != "" {
		socket, err := dialConsoleSocket(ctx, h.consoleSocket)
		if err != nil {
			return err
		}
		defer unix.Close(socket)
		fds = []int{socket}
	}
	conn, err := g.dialStream(ctx)
	if err != nil {
		return err
	}
	h.stream = conn
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return sys.Unsupportedf("descriptors cannot be handed over to a daemon that is not on a unix socket")
	}
	id := strconv.FormatUint(uint64(randomStreamID()), 10)
	if err := vsockstream.OpenWithFDs(ctx, socket, vsockstream.FramingU32, id, append(fds, h.inherited...)...); err != nil {
		return err
	}
	h.uri = "fds://" + id
	if h.listen > 0 {
		h.uri += "?listen=" + strconv.Itoa(h.listen)
	}
	return nil
}

// close tells the daemon that we have no more interest in the process.
func (h *handover) close() {
	if h.stream != nil {
		_ = h.stream.Close()
	}
}

// inheritedSockets is how many sockets socket activation has given us, from
// descriptor 3 on: sd_listen_fds(3).
func inheritedSockets() (int, error) {
	n := os.Getenv("LISTEN_FDS")
	if n == "" || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return 0, nil
	}
	count, err := strconv.ParseUint(n, 10, 8)
	if err != nil {
		return 0, sys.Invalidf("LISTEN_FDS=%s is not a number of descriptors", n)
	}
	return int(count), nil
}

// dialConsoleSocket connects to the socket that wants the terminal.
func dialConsoleSocket(ctx context.Context, path string) (fd int, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return -1, fmt.Errorf("--console-socket: %w", err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return -1, err
	}
	ctlErr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 3) })
	return fd, errors.Join(ctlErr, err)
}
