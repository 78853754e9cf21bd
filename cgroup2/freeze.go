package cgroup2

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Freeze stops every process in the cgroup and below, and returns when all of
// them have stopped. If ctx ends first the cgroup is thawed again and ctx's
// error returned: a pause either happens or does not. Linux 5.2.
//
// A frozen process can still be killed. A process cloned into a frozen cgroup
// never runs: refuse to start one.
func (c *Cgroup) Freeze(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return c.wrap("freeze", err)
	}
	if err := c.setFrozen(ctx, true); err != nil {
		_ = c.dir.write("cgroup.freeze", "0")
		return c.wrap("freeze", err)
	}
	return nil
}

// Thaw undoes [Cgroup.Freeze] and returns when the cgroup is no longer frozen.
// Cgroups below that were frozen on their own stay so.
func (c *Cgroup) Thaw(ctx context.Context) error {
	return c.wrap("thaw", c.setFrozen(ctx, false))
}

func (c *Cgroup) setFrozen(ctx context.Context, frozen bool) error {
	value := "0"
	if frozen {
		value = "1"
	}
	err := c.dir.write("cgroup.freeze", value)
	if errors.Is(err, unix.ENOENT) {
		if c.gone() {
			return unix.ENODEV
		}
		return sys.Unsupportedf("%w: no cgroup.freeze, the kernel is older than 5.2", err)
	}
	if err != nil {
		return err
	}
	return c.waitEvents(ctx, func(ev events) bool { return ev.frozen == frozen })
}
