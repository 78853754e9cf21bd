package cgroup2

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Cgroup is the cgroup of one container. Its methods are safe for concurrent
// use. After [Cgroup.Close] they fail with os.ErrClosed.
type Cgroup struct {
	tree *Tree
	rel  string // below the tree, no leading slash
	path string // below the mountpoint, with a leading slash
	dir  dir

	deleted   bool        // guarded by tree.mu
	uncounted atomic.Bool // no memory controller: OOM kills are not counted

	devMu  sync.Mutex // held while the device filter is exchanged
	filter *devFilter // the one attached, nil at first; guarded by devMu
}

// Path returns where the cgroup is, below the mountpoint and with a leading
// slash: what /proc/PID/cgroup shows after "0::" to a process in the root
// cgroup namespace.
func (c *Cgroup) Path() string { return c.path }

// Dir returns the directory, open O_RDONLY|O_DIRECTORY and close-on-exec, for
// CLONE_INTO_CGROUP. It belongs to the Cgroup and is closed with it.
func (c *Cgroup) Dir() *os.File { return c.dir.file }

// Close releases the descriptors. The cgroup itself stays until
// [Cgroup.Delete]. Closing twice is fine.
func (c *Cgroup) Close() error {
	c.tree.dropOOM(c)
	c.devMu.Lock()
	c.tree.filters.put(c.filter)
	c.filter = nil
	c.devMu.Unlock()
	if err := c.dir.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Add moves the process pid, with all its threads, into the cgroup.
func (c *Cgroup) Add(pid int) error {
	return c.wrap(fmt.Sprintf("add process %d to", pid), c.dir.write("cgroup.procs", strconv.Itoa(pid)))
}

// wrap names the operation and the cgroup in err, and marks errors that say
// that the cgroup is gone with sys.ErrNotFound. A nil err stays nil.
func (c *Cgroup) wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s cgroup %s: %w", op, c.path, err)
	if errors.Is(err, unix.ENODEV) && !errors.Is(err, sys.ErrInvalid) {
		err = sys.Mark(sys.ErrNotFound, err)
	}
	return err
}
