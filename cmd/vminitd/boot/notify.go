package boot

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// NotifyHost tells a VMM that follows systemd's convention that the guest is up:
// the credential vmm.notify_socket names a socket of the host that wants
// READY=1, as sd_notify(3) sends it.
func NotifyHost(c Credentials) error {
	address := c["vmm.notify_socket"]
	if address == "" {
		return nil
	}
	types, to, err := parseNotifySocket(address)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range types {
		if err = notify(t, to, "READY=1\n"); err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("notify %s: %w", address, errors.Join(errs...))
}

// parseNotifySocket reads vsock[-stream|-dgram|-seqpacket]:CID:PORT. Where the
// type is not said all are tried, in the order of sd_notify(3).
func parseNotifySocket(s string) (types []int, to *unix.SockaddrVM, err error) {
	scheme, rest, _ := strings.Cut(s, ":")
	switch scheme {
	case "vsock":
		types = []int{unix.SOCK_DGRAM, unix.SOCK_SEQPACKET, unix.SOCK_STREAM}
	case "vsock-dgram":
		types = []int{unix.SOCK_DGRAM}
	case "vsock-seqpacket":
		types = []int{unix.SOCK_SEQPACKET}
	case "vsock-stream":
		types = []int{unix.SOCK_STREAM}
	}
	cid, port, ok := strings.Cut(strings.TrimSpace(rest), ":")
	c, err1 := strconv.ParseUint(cid, 10, 32)
	p, err2 := strconv.ParseUint(port, 10, 32)
	if types == nil || !ok || err1 != nil || err2 != nil {
		return nil, nil, fmt.Errorf("vmm.notify_socket %q: want vsock:CID:PORT", s)
	}
	return types, &unix.SockaddrVM{CID: uint32(c), Port: uint32(p)}, nil
}

// notifyTimeout bounds what a host that does not answer may cost.
const notifyTimeout = 5 * time.Second

// notify sends one message. The socket is closed in order: the host reads what
// was sent before it sees the end.
func notify(typ int, to *unix.SockaddrVM, message string) error {
	fd, err := unix.Socket(unix.AF_VSOCK, typ|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(notifyTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if typ == unix.SOCK_DGRAM {
		return os.NewSyscallError("sendto", unix.Sendto(fd, []byte(message), 0, to))
	}
	if err := unix.Connect(fd, to); err != nil {
		return os.NewSyscallError("connect", err)
	}
	if _, err := unix.Write(fd, []byte(message)); err != nil {
		return os.NewSyscallError("write", err)
	}
	return os.NewSyscallError("shutdown", unix.Shutdown(fd, unix.SHUT_WR))
}
