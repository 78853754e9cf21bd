package power

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// killAll kills every other process and waits until none of them is left, so
// that their filesystems can be unmounted. kill(2) with -1 from PID 1 reaches
// all processes of the machine except PID 1 itself and kernel threads.
func killAll(ctx context.Context) error {
	if os.Getpid() != 1 {
		return errors.New("not PID 1")
	}
	if err := unix.Kill(-1, unix.SIGKILL); errors.Is(err, unix.ESRCH) {
		return nil
	} else if err != nil {
		return fmt.Errorf("kill all processes: %w", err)
	}
	for {
		// Orphans become our children, so the last one to be waited for is the
		// last process of all. The daemon's own reaper may get there first.
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for killed processes: %w", err)
		case pid > 0:
			continue
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes are left after SIGKILL: %w", ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
