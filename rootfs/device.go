package rootfs

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// deviceTimeout is how long a device may take to be plugged in.
const deviceTimeout = 10 * time.Second

// waitForDevice waits until a device node, or a link to one, exists. It listens
// to the events of the kernel and of who makes the links, and never polls.
func waitForDevice(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, deviceTimeout, fmt.Errorf("it did not appear within %s: %w", deviceTimeout, context.DeadlineExceeded))
	defer cancel()
	if err := sys.AwaitDevice(ctx, func() bool { return present(path) }); err != nil {
		return fmt.Errorf("wait for device %s: %w", path, err)
	}
	return nil
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
