package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vminit/cgroup2"
	"vminit/cmd/vminitd/power"
	"vminit/internal/sys"
)

// A daemon that vminitctl starts when it needs one, and that ends by itself.
//
// Its directory holds the sockets and a lock file. Clients lock it shared before
// they connect and for as long as they live; the daemon ends only after it has
// locked it exclusively, and then removes the directory before the kernel lets
// go of the lock: a client that waited for it finds the file gone and starts
// over. So nobody is ever connected to a daemon that is about to end.
//
// The directory may go while the daemon lives (logind removes a user's at logout),
// and another may come in its place, with a daemon of its own. What tells them
// apart is the lock file, which is held open, so that its inode is no other's.

// tellReady tells the starter how serving began.
func (d *daemon) tellReady(err error) {
	if d.opts.ReadyFD == 0 {
		return
	}
	unix.CloseOnExec(d.opts.ReadyFD)
	text := "\n"
	if err != nil {
		text = err.Error()
	}
	_, _ = unix.Write(d.opts.ReadyFD, []byte(text)) // a starter that is gone needs no answer
	unix.Close(d.opts.ReadyFD)
}

// endWhenIdle asks for the end when there has been no container and no client
// for the time of -idle-exit.
func (d *daemon) endWhenIdle(s *services) {
	since := time.Now()
	var seen uint64
	for tick := range time.Tick(max(d.opts.IdleExit/4, 10*time.Millisecond)) {
		busy, connected := s.use()
		if busy || connected != seen {
			since, seen = tick, connected
			continue
		}
		if tick.Sub(since) < d.opts.IdleExit || !d.lockOutClients() {
			continue
		}
		// One that does not heed the lock may have come meanwhile.
		if busy, connected := s.use(); busy || connected != seen {
			d.letClientsIn()
			continue
		}
		d.end.request(power.Off, "idle")
		return
	}
}

// use tells whether there are containers or connections, and how many
// connections there have been.
func (s *services) use() (busy bool, connected uint64) {
	open, connected := s.server.Connections()
	handshakes, unclaimed, claimed := s.hub.Stats()
	return open+handshakes+unclaimed+claimed+s.tasks.Containers() > 0, connected
}

// openPlace opens the lock that clients have in common.
func (d *daemon) openPlace() (err error) {
	if d.opts.IdleLock == "" {
		return nil
	}
	d.idleLock, err = unix.Open(d.opts.IdleLock, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open -idle-lock %s: %w", d.opts.IdleLock, err)
	}
	return nil
}

// lockOutClients takes the lock for as long as the process lives. It fails while
// a client has it, also one that came before the place was removed.
func (d *daemon) lockOutClients() bool {
	return d.opts.IdleLock == "" || unix.Flock(d.idleLock, unix.LOCK_EX|unix.LOCK_NB) == nil
}

func (d *daemon) letClientsIn() {
	if d.opts.IdleLock != "" {
		_ = unix.Flock(d.idleLock, unix.LOCK_UN)
	}
}

// hasPlace reports whether the place is still the one that openPlace saw.
func (d *daemon) hasPlace() bool {
	var mine, named unix.Stat_t
	return unix.Fstat(d.idleLock, &mine) == nil && unix.Lstat(d.opts.IdleLock, &named) == nil &&
		mine.Dev == named.Dev && mine.Ino == named.Ino
}

// leave removes what a daemon started on demand has made, if nobody wants to
// come any more. The sockets are gone with their listeners.
func (d *daemon) leave() {
	if d.opts.IdleLock == "" || !d.lockOutClients() {
		return
	}
	// Ours, wherever the place is: serve claimed it.
	_ = os.Remove(filepath.Join(d.serviceConfig().cgroupMount(), d.opts.CgroupTree))
	if !d.hasPlace() {
		return
	}
	dir := filepath.Dir(d.opts.IdleLock)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.Name() != filepath.Base(d.opts.IdleLock) {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	_ = os.Remove(d.opts.IdleLock) // the last: with it clients can start over
	_ = os.Remove(dir)
}

// claimTimeout is how long a daemon that ends may keep its tree from the next.
const claimTimeout = 2 * time.Second

// claimTree opens the tree and claims it. It is [sys.ErrState] while another daemon
// lives there.
func (c serviceConfig) claimTree(mount string) (*cgroup2.Tree, error) {
	ctx, cancel := context.WithTimeout(context.Background(), claimTimeout)
	defer cancel()
	for {
		tree, err := cgroup2.OpenTree(mount, c.Options.CgroupTree)
		if err != nil {
			return nil, err
		}
		if err = tree.Claim(ctx); err == nil {
			return tree, nil
		}
		tree.Close()
		switch {
		case errors.Is(err, sys.ErrState):
			return nil, fmt.Errorf("%w: a daemon whose place was removed still has containers there; "+
				"pkill -f %s ends both, and another --root does without", err, c.Options.CgroupTree)
		case !errors.Is(err, os.ErrNotExist) || ctx.Err() != nil:
			return nil, err
		}
	}
}
