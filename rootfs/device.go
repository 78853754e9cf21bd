package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	deviceTimeout = 10 * time.Second       // how long a device may take to be plugged in
	deviceLook    = 250 * time.Millisecond // how often to look without an event: links are made by others, after it
)

// waitForDevice waits until a device node exists. It listens to the kernel's
// uevents (netlink(7), NETLINK_KOBJECT_UEVENT) and looks after subscribing, so
// that nothing is missed.
func waitForDevice(ctx context.Context, path string) error {
	if present(path) {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, deviceTimeout, fmt.Errorf("it did not appear within %s: %w", deviceTimeout, context.DeadlineExceeded))
	defer cancel()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("listen for uevents: %w", err)
	}
	events := os.NewFile(uintptr(fd), "uevents")
	defer events.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return fmt.Errorf("listen for uevents: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { events.Close() })
	defer stop()
	buf := make([]byte, 8192)
	for {
		if present(path) {
			return nil
		}
		err := events.SetReadDeadline(time.Now().Add(deviceLook))
		if err == nil {
			_, err = events.Read(buf)
		}
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("wait for device %s: %w", path, context.Cause(ctx))
		case err == nil, errors.Is(err, unix.ENOBUFS), errors.Is(err, os.ErrDeadlineExceeded): // or events were lost: look again
		default:
			return fmt.Errorf("wait for device %s: %w", path, err)
		}
	}
}

// present reports whether there is a device behind the path: the node of one
// that has just been plugged in may be there first (ENXIO).
func present(path string) bool {
	st, err := os.Stat(path)
	if err != nil {
		return false
	}
	if st.Mode().Type() != os.ModeDevice {
		return true
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err != unix.ENXIO && err != unix.ENODEV
}
