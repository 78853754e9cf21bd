package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// deviceTimeout bounds the wait for a device that may be plugged in late.
const deviceTimeout = 10 * time.Second

// waitForDevice waits until a device node exists. It listens to the kernel's
// uevents (netlink(7), NETLINK_KOBJECT_UEVENT) and looks after subscribing, so
// that nothing is missed and nobody polls.
func waitForDevice(ctx context.Context, path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, deviceTimeout)
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
	stop := context.AfterFunc(ctx, func() { events.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	buf := make([]byte, 8192)
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		_, err := events.Read(buf)
		switch {
		case err == nil, errors.Is(err, unix.ENOBUFS): // events were lost: look again
		case ctx.Err() != nil:
			return fmt.Errorf("device %s did not appear within %s: %w", path, deviceTimeout, ctx.Err())
		default:
			return fmt.Errorf("wait for device %s: %w", path, err)
		}
	}
}
