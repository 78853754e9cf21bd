package tasksvc

import (
	"context"
	"errors"

	"vminit/internal/sys"
)

// watchOOM publishes an OOM event whenever the kernel kills in the container
// for want of memory, until the cgroup is deleted. What an exit was caused by
// does not depend on it: publishExits looks for itself.
func (c *container) watchOOM() {
	err := c.cgroup.WatchOOM(context.Background(), func(uint64) {
		guard(c.svc.log, "OOM watch", func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.publishOOM()
		})
	})
	if err != nil && !errors.Is(err, sys.ErrUnsupported) {
		c.svc.log.Warn("OOM kills will be reported with exits only", "container", c.id, "error", err)
	}
}
