package cgroup2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Back-off between attempts when the kernel says EBUSY although no process is
// left to wait for.
const (
	firstDelay = time.Millisecond
	lastDelay  = 50 * time.Millisecond
)

// Delete removes the cgroup with everything below it, and those of its parents
// that [Tree.Create] made and nobody else uses. It kills nothing: it waits for
// the processes to be gone, as long as ctx allows, and then fails with an
// error that is marked [sys.ErrState], wraps EBUSY and ctx's error, and names
// the processes that are left. It can be tried again. A cgroup that is not
// there any more is success.
func (c *Cgroup) Delete(ctx context.Context) error {
	for delay := firstDelay; ; delay = min(2*delay, lastDelay) {
		err := c.removeAll()
		if err == nil {
			c.tree.dropOOM(c)
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return c.wrap("remove", err)
		}
		if ctx.Err() == nil {
			err = c.waitIdle(ctx, delay)
		}
		if ctx.Err() != nil {
			return c.busy(ctx.Err())
		}
		if err != nil && !absent(err) && !errors.Is(err, unix.EBUSY) {
			return c.wrap("wait for", err)
		}
	}
}

// removeAll tries once: the cgroup itself, which is all there is to do for
// most, and if that is EBUSY the cgroups below it first.
func (c *Cgroup) removeAll() error {
	err := c.tree.remove(c)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	err = c.dir.do(func(fd int) error {
		return walk(fd, func(int) error { return nil }, func(parent int, name string) error {
			return unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
		})
	})
	if err != nil && !absent(err) {
		return err
	}
	return c.tree.remove(c)
}

// waitIdle waits for the last process to leave; if there is none, for delay.
func (c *Cgroup) waitIdle(ctx context.Context, delay time.Duration) error {
	populated, err := c.Populated()
	if err != nil {
		return err
	}
	if populated {
		return c.waitEvents(ctx, func(ev events) bool { return !ev.populated })
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil
}

// busy makes the error that says who is in the way.
func (c *Cgroup) busy(cause error) error {
	const most = 8
	pids, _ := c.Procs()
	var who []string
	for _, pid := range pids[:min(len(pids), most)] {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		who = append(who, fmt.Sprintf("%d (%s)", pid, bytes.TrimSpace(comm)))
	}
	if len(pids) > most {
		who = append(who, fmt.Sprintf("%d more", len(pids)-most))
	}
	left := "no process is left in it"
	if len(who) > 0 {
		left = "still running in it: " + strings.Join(who, ", ")
	}
	return sys.Mark(sys.ErrState, fmt.Errorf("remove cgroup %s: %w (%w): %s", c.path, unix.EBUSY, cause, left))
}
