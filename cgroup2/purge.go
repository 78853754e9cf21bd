package cgroup2

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Purge kills and removes everything in the tree: what an owner that ended
// without deleting its containers has left behind. Nobody else may use the tree
// meanwhile: see [Tree.Claim]. It waits for the processes to be gone as long as ctx allows.
func (t *Tree) Purge(ctx context.Context) error {
	c := &Cgroup{tree: t, path: t.path, dir: t.dir}
	for delay := firstDelay; ; delay = min(2*delay, lastDelay) {
		empty, err := t.purgeOnce(c)
		if err == nil && empty {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("clear cgroup %s: %w", t.path, err)
		}
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return c.busy(ctx.Err())
		}
	}
}

// purgeOnce reports whether there was nothing to do.
func (t *Tree) purgeOnce(c *Cgroup) (empty bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	err = t.dir.do(func(fd int) error {
		names, err := subdirs(fd)
		if empty = len(names) == 0; empty || err != nil {
			return err
		}
		if err := c.Kill(); err != nil {
			return err
		}
		return walk(fd, func(int) error { return nil }, func(parent int, name string) error {
			return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		})
	})
	return empty, err
}
