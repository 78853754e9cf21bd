package sys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Groups of NETLINK_KOBJECT_UEVENT: the kernel sends to the first one, who makes
// links in /dev (udev, and vminitd in its guest) to the second, when they are made.
const (
	UeventKernel = 1
	UeventLinks  = 2
)

// ErrEventsLost says that the kernel had no room for an event: what it told of
// must be looked up.
var ErrEventsLost = Mark(ErrState, errors.New("uevents were lost"))

// ueventBuffer is how much may wait to be read; none of it is taken before.
const ueventBuffer = 16 << 20

// Uevents is a subscription to what happens to devices: netlink(7),
// NETLINK_KOBJECT_UEVENT; lib/kobject_uevent.c for the form.
type Uevents struct {
	f   *os.File
	buf []byte
}

// Uevent is one message: strings of the form NAME=value.
type Uevent struct{ env []string }

// ListenUevents subscribes to groups (UeventKernel | UeventLinks), of the
// calling process's network namespace. No privilege is needed. Who looks at
// devices after it misses nothing. Close the subscription in the end.
func ListenUevents(groups uint32) (*Uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen for uevents: %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, ueventBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, ueventBuffer) // as much as an ordinary user may have
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen for uevents: %w", err)
	}
	return &Uevents{f: os.NewFile(uintptr(fd), "uevents"), buf: make([]byte, 8192)}, nil // the kernel's have 2 KiB at most
}

// Next waits for the next event. ErrEventsLost leaves the subscription as it is.
// One goroutine at a time may call it.
func (u *Uevents) Next() (Uevent, error) {
	n, err := u.f.Read(u.buf)
	switch {
	case errors.Is(err, unix.ENOBUFS):
		return Uevent{}, ErrEventsLost
	case err != nil:
		return Uevent{}, err
	}
	return ParseUevent(u.buf[:n]), nil
}

// Pending takes an event that has come already; ok is false when none has.
func (u *Uevents) Pending() (e Uevent, ok bool) {
	// A deadline that has passed lets no read begin, so it is set a little ahead.
	_ = u.f.SetReadDeadline(time.Now().Add(time.Millisecond))
	defer func() { _ = u.f.SetReadDeadline(time.Time{}) }()
	e, err := u.Next()
	return e, err == nil
}

// Close ends the subscription, and a Next that waits.
func (u *Uevents) Close() error { return u.f.Close() }

// ParseUevent splits a message. Any bytes are one, if of no use.
func ParseUevent(b []byte) Uevent {
	return Uevent{env: strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00")}
}

// Get is the value of a variable, "" if the event has none of that name.
func (e Uevent) Get(name string) string {
	for _, s := range e.env {
		if n, v, ok := strings.Cut(s, "="); ok && n == name {
			return v
		}
	}
	return ""
}

// AwaitDevice returns nil as soon as there is reports true. It asks at once and
// after every event of a device or of links to it; what becomes true without
// such an event is not noticed. The error is ctx's cause or why there are no events.
func AwaitDevice(ctx context.Context, there func() bool) error {
	if there() {
		return nil
	}
	events, err := ListenUevents(UeventKernel | UeventLinks)
	if err != nil {
		return err
	}
	defer events.Close()
	defer context.AfterFunc(ctx, func() { events.Close() })()
	for !there() {
		_, err := events.Next()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !errors.Is(err, ErrEventsLost):
			return err
		}
	}
	return nil
}

// AnnounceLinks tells those who wait in AwaitDevice that links in /dev have been
// made. It needs CAP_NET_ADMIN.
func AnnounceLinks() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("announce links: %w", err)
	}
	defer unix.Close(fd)
	// The first four bytes, read as the length of a netlink message, say that
	// this is none, so the kernel, which gets it too, lets it be.
	err = unix.Sendto(fd, []byte("links@/dev/disk\x00"), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: UeventLinks})
	if err != nil && err != unix.ECONNREFUSED { // nobody listens
		return fmt.Errorf("announce links: %w", err)
	}
	return nil
}
