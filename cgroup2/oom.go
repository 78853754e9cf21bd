package cgroup2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// oomWatcher is the one inotify instance of a tree. Its goroutine starts with
// the first watch and ends when the tree is closed.
type oomWatcher struct {
	file *os.File // inotify, non-blocking: reading it waits in the poller

	mu      sync.Mutex
	watches map[int32]*oomWatch // by watch descriptor; guarded by mu
}

// oomWatch is one cgroup's.
type oomWatch struct {
	c  *Cgroup
	fn func(kills uint64)

	detach func() bool // from the context; guarded by oomWatcher.mu

	mu   sync.Mutex
	last uint64 // last count reported; guarded by mu
	over bool   // no more reports; guarded by mu
}

// WatchOOM calls fn with the number of OOM kills so far ([Cgroup.OOMKills])
// each time it has grown: once before WatchOOM returns, if it is not zero
// then, and from there on in a goroutine of the tree, one call at a time. Kills
// in quick succession may be reported together. fn must return soon, as it
// delays the reports of all other cgroups, and must not delete or close c.
//
// Reports end with ctx, [Cgroup.Delete], [Cgroup.Close] or [Tree.Close]; none
// begins after one of the middle two has returned. A cgroup can be watched
// once at a time ([sys.ErrExists]); without a memory controller there is
// nothing to watch ([sys.ErrUnsupported]).
func (c *Cgroup) WatchOOM(ctx context.Context, fn func(kills uint64)) error {
	if _, err := c.OOMKills(); err != nil {
		return err
	}
	w, err := c.tree.oomWatcher()
	if err != nil {
		return c.wrap("watch memory.events of", err)
	}
	watch := &oomWatch{c: c, fn: fn}
	wd, err := w.add(watch)
	if err != nil {
		return c.wrap("watch memory.events of", err)
	}
	detach := context.AfterFunc(ctx, func() { w.remove(wd, watch) })
	w.mu.Lock()
	watch.detach = detach
	w.mu.Unlock()
	watch.check()
	return nil
}

// oomWatcher returns the tree's watcher, starting it if this is the first use.
func (t *Tree) oomWatcher() (*oomWatcher, error) {
	t.oomMu.Lock()
	defer t.oomMu.Unlock()
	if t.closed {
		return nil, os.ErrClosed
	}
	if t.oom == nil {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			return nil, fmt.Errorf("inotify_init1: %w", err)
		}
		t.oom = &oomWatcher{file: os.NewFile(uintptr(fd), "inotify"), watches: map[int32]*oomWatch{}}
		go t.oom.run()
	}
	return t.oom, nil
}

// add starts a watch. inotify takes only a path; the one through /proc leads
// to the directory that is open, whatever has been mounted where since.
func (w *oomWatcher) add(watch *oomWatch) (wd int32, err error) {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	w.mu.Lock() // so that an event finds its watch
	defer w.mu.Unlock()
	cerr := conn.Control(func(inotify uintptr) {
		err = watch.c.dir.do(func(dirfd int) error {
			path := fmt.Sprintf("/proc/self/fd/%d/memory.events", dirfd)
			n, err := unix.InotifyAddWatch(int(inotify), path, unix.IN_MODIFY|unix.IN_MASK_CREATE)
			wd = int32(n)
			return err
		})
	})
	if cerr != nil {
		return 0, cerr
	}
	if errors.Is(err, unix.EEXIST) {
		return 0, sys.Mark(sys.ErrExists, fmt.Errorf("it is watched already: %w", err))
	}
	if err != nil {
		return 0, err
	}
	w.watches[wd] = watch
	return wd, nil
}

// remove ends a watch and waits for a report that is under way.
func (w *oomWatcher) remove(wd int32, watch *oomWatch) {
	w.mu.Lock()
	if watch.detach != nil {
		watch.detach()
	}
	if w.watches[wd] == watch {
		delete(w.watches, wd)
		if conn, err := w.file.SyscallConn(); err == nil {
			_ = conn.Control(func(inotify uintptr) {
				// The kernel has removed it already if the file is gone.
				_, _ = unix.InotifyRmWatch(int(inotify), uint32(wd))
			})
		}
	}
	w.mu.Unlock()
	watch.mu.Lock()
	watch.over = true
	watch.mu.Unlock()
}

// dropOOM ends the watch of a cgroup, if it has one.
func (t *Tree) dropOOM(c *Cgroup) {
	t.oomMu.Lock()
	w := t.oom
	t.oomMu.Unlock()
	if w == nil {
		return
	}
	w.mu.Lock()
	var wd int32
	var watch *oomWatch
	for n, have := range w.watches {
		if have.c == c {
			wd, watch = n, have
		}
	}
	w.mu.Unlock()
	if watch != nil {
		w.remove(wd, watch)
	}
}

// run reads events until the watcher is closed.
func (w *oomWatcher) run() {
	buf := make([]byte, 4096)
	for {
		n, err := w.file.Read(buf)
		if err != nil || n == 0 {
			return
		}
		for _, watch := range w.changed(buf[:n]) {
			watch.check()
		}
	}
}

// changed returns the watches that inotify events are about; all of them if
// the kernel's queue has overflowed.
func (w *oomWatcher) changed(data []byte) []*oomWatch {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*oomWatch
	for _, ev := range parseInotify(data) {
		if ev.mask&unix.IN_Q_OVERFLOW != 0 {
			list = list[:0]
			for _, watch := range w.watches {
				list = append(list, watch)
			}
			return list
		}
		if watch := w.watches[ev.wd]; watch != nil {
			list = append(list, watch)
		}
	}
	return list
}

type inotifyEvent struct {
	wd   int32
	mask uint32
}

// parseInotify decodes what read(2) on inotify returned: records of wd, mask,
// cookie and name length, 32 bits each, and the name (inotify(7)).
func parseInotify(data []byte) []inotifyEvent {
	var events []inotifyEvent
	for len(data) >= unix.SizeofInotifyEvent {
		events = append(events, inotifyEvent{
			wd:   int32(binary.NativeEndian.Uint32(data)),
			mask: binary.NativeEndian.Uint32(data[4:]),
		})
		size := unix.SizeofInotifyEvent + uint64(binary.NativeEndian.Uint32(data[12:]))
		if size > uint64(len(data)) {
			break
		}
		data = data[size:]
	}
	return events
}

// check reports the count if it has grown.
func (w *oomWatch) check() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	kills, err := w.c.OOMKills()
	if err == nil && kills > w.last {
		w.last = kills
		w.fn(kills)
	}
}
