package cgroup2

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// events is cgroup.events: two flags about the cgroup and all below it.
type events struct {
	populated bool // a live process is in it
	frozen    bool // all of its processes are frozen (Linux 5.2)
}

// parseEvents decodes cgroup.events. Keys it does not know are skipped.
func parseEvents(data []byte) (events, error) {
	var ev events
	err := eachKey(data, func(key []byte, value uint64) {
		switch string(key) {
		case "populated":
			ev.populated = value != 0
		case "frozen":
			ev.frozen = value != 0
		}
	})
	return ev, err
}

// Populated reports whether a process is left in the cgroup or below it.
// A cgroup that has been removed is not populated.
func (c *Cgroup) Populated() (bool, error) {
	data, err := c.dir.read("cgroup.events")
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, c.wrap("read cgroup.events of", err)
	}
	ev, err := parseEvents(data)
	return ev.populated, c.wrap("parse cgroup.events of", err)
}

// waitEvents returns nil as soon as done holds for cgroup.events, and ctx's
// error if that ends first. A removed cgroup is ENODEV or ENOENT.
//
// The kernel announces a change with POLLPRI|POLLERR on the open file
// (kernfs_generic_poll), which wakes Go's edge-triggered poller: no thread is
// blocked and nothing is polled in a loop. Reading rearms it.
func (c *Cgroup) waitEvents(ctx context.Context, done func(events) bool) error {
	fd, err := c.dir.open("cgroup.events", unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "cgroup.events")
	defer f.Close()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	var inner error
	check := func(fd uintptr) bool {
		var buf [256]byte
		n, err := unix.Pread(int(fd), buf[:], 0)
		for err == unix.EINTR {
			n, err = unix.Pread(int(fd), buf[:], 0)
		}
		if inner = err; err != nil {
			return true
		}
		var ev events
		ev, inner = parseEvents(buf[:n])
		return inner != nil || done(ev)
	}
	err = conn.Read(check)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ctx.Err()
	case err != nil:
		return err
	}
	return inner
}
