package nsexec

import (
	"context"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// ReapOrphans reaps processes that were re-parented to us, until ctx ends. Only
// a PID 1 or subreaper needs it, and it may run once per process.
//
// A zombie that belongs to a live Process is reaped on that Process's behalf:
// waitid(P_ALL) keeps showing the first zombie, so it must not block the queue.
func (l *Launcher) ReapOrphans(ctx context.Context) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGCHLD)
	defer signal.Stop(ch)
	for {
		for l.reapOne() {
		}
		select {
		case <-ctx.Done():
			return
		case <-ch:
		}
		// Our own children's deaths make this signal, too, and they are in a
		// hurry: let them pass, and take orphans by the dozen.
		time.Sleep(reapDelay)
	}
}

const reapDelay = 2 * time.Millisecond

// reapOne reaps one dead child, if there is one.
func (l *Launcher) reapOne() bool {
	c, p := l.peek()
	switch {
	case c.PID == 0:
		return false
	case p != nil:
		return p.tryReap()
	}
	_, err := sys.Waitid(unix.P_PID, c.PID, unix.WEXITED|unix.WNOHANG)
	return err == nil
}

// peek looks at the first zombie without reaping it. Holding fork exclusively
// means that every child that exists is in children: an unreaped pid cannot be
// reused, so what is not there is an orphan.
func (l *Launcher) peek() (sys.Child, *Process) {
	l.fork.Lock()
	defer l.fork.Unlock()
	c, err := sys.Waitid(unix.P_ALL, 0, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
	if err != nil { // ECHILD: no children at all
		return sys.Child{}, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return c, l.children[c.PID]
}
