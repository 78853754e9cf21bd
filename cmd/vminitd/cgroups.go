package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"vminit/cgroup2"
)

const (
	cgroupMount = "/sys/fs/cgroup"
	cgroupTree  = "vminit" // containers live below it
)

// cgroupMount is where the cgroup2 hierarchy is: in a guest we mounted it, on
// another machine there may be version 1 in its usual place.
func (c serviceConfig) cgroupMount() string {
	if !c.Options.outsideVM() {
		return cgroupMount
	}
	for _, dir := range []string{cgroupMount, cgroupMount + "/unified"} {
		if isCgroup2(dir) {
			return dir
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range bytes.Lines(mounts) {
		head, tail, _ := bytes.Cut(line, []byte(" - "))
		if f := bytes.Fields(head); len(f) > 4 && bytes.HasPrefix(tail, []byte("cgroup2 ")) && isCgroup2(string(f[4])) {
			return string(f[4])
		}
	}
	return cgroupMount // to be named by the error
}

func isCgroup2(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

// openTree opens the tree that containers live in. A daemon started on demand
// has it for itself: once that is claimed, what is in it is left from one that
// was killed, and nobody knows it any more.
func (c serviceConfig) openTree(mount string) (*cgroup2.Tree, error) {
	if c.Options.IdleLock == "" {
		return cgroup2.OpenTree(mount, c.Options.CgroupTree)
	}
	tree, err := c.claimTree(mount)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := tree.Purge(ctx); err != nil {
		return nil, fmt.Errorf("remove the containers of a daemon that has died: %w", err)
	}
	return tree, nil
}
