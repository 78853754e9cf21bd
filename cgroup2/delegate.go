package cgroup2

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Delegate gives the cgroup to a user: the directory and the files that the
// kernel lists in /sys/kernel/cgroup/delegate (Linux 4.15), those with which
// the subtree is managed and not limited. The limits stay with the daemon.
// Meant for a container whose own root user, uid as seen from the daemon,
// manages a writable cgroup mount in a cgroup namespace of its own. A gid of
// -1 leaves the group as it is.
func (c *Cgroup) Delegate(uid, gid int) error {
	files := []string{"cgroup.procs", "cgroup.threads", "cgroup.subtree_control"}
	if list, err := os.ReadFile("/sys/kernel/cgroup/delegate"); err == nil {
		files = strings.Fields(string(list))
	}
	err := c.dir.do(func(fd int) error {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return err
		}
		for _, name := range files {
			if strings.Contains(name, "/") {
				continue
			}
			err := unix.Fchownat(fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
			// Files of controllers that are not enabled are listed too.
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
	return c.wrap(fmt.Sprintf("delegate to user %d", uid), err)
}
