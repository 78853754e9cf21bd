package cgroup2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Claim makes the tree the caller's alone, as far as others claim it, too, until
// it is closed or the process ends. It waits as long as ctx allows for another
// owner to let go and is [sys.ErrState] then. A tree that was removed since it
// was opened is [os.ErrNotExist]: open it anew.
//
// It is a lock (flock(2)) on the tree's cgroup.kill (Linux 5.14), which nobody
// but the cgroup's owner can open; before, any user can keep it from us, by a
// lock on the directory. It belongs to the cgroup wherever that is looked at
// from, and nothing has to be cleared away after an owner that was killed.
func (t *Tree) Claim(ctx context.Context) error {
	fd, err := t.dir.open("cgroup.kill", unix.O_WRONLY)
	if errors.Is(err, unix.ENOENT) {
		fd, err = t.dir.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	}
	if err != nil {
		return fmt.Errorf("claim cgroup %s: %w", t.path, err)
	}
	lock := os.NewFile(uintptr(fd), t.path)
	if err := lockWithin(ctx, fd); err != nil {
		lock.Close()
		return fmt.Errorf("claim cgroup %s: %w", t.path, err)
	}
	// The last owner may have removed it before it let go.
	if _, err := t.dir.read("cgroup.procs"); absent(err) {
		lock.Close()
		return fmt.Errorf("claim cgroup %s: %w", t.path, os.ErrNotExist)
	}
	t.claim = lock
	return nil
}

// lockWithin locks the file again and again until ctx ends.
func lockWithin(ctx context.Context, fd int) error {
	for delay := firstDelay; ; delay = min(2*delay, lastDelay) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return err
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return sys.Mark(sys.ErrState, errors.New("another process has claimed it"))
		}
	}
}
