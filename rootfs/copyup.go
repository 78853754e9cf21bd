package rootfs

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// copyUp fills the new tmpfs in c.tree, which nobody else can see yet, with
// what is in the directory in c.dest. A walk through a hostile image is no
// straight line of syscalls: the parent does it.
func (c *Compiler) copyUp(e *entry) {
	c.gate("copy up "+e.Destination, func(v *visit) error {
		if err := v.copyTree(e); err != nil {
			return fmt.Errorf("mount tmpfs on %s: tmpcopyup: %w", e.Destination, err)
		}
		return nil
	})
}

func (v *visit) copyTree(e *entry) error {
	from, err := v.file(v.dest)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := v.file(v.tree)
	if err != nil {
		return err
	}
	defer to.Close()
	var keep ownerAndMode
	var st unix.Stat_t
	if err := unix.Fstatat(int(to.Fd()), "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if e.has("mode") {
		keep.mode = &st.Mode
	}
	if e.has("uid") {
		keep.uid = &st.Uid
	}
	if e.has("gid") {
		keep.gid = &st.Gid
	}
	c := &copier{deadline: v.deadline, links: map[inode]string{}}
	return asContainerRoot(v.child.PID(), func() error { return c.copyRoot(int(from.Fd()), int(to.Fd()), keep) })
}
