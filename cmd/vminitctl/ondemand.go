package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"vminit/internal/microvm"
	"vminit/internal/sys"
	"vminit/vsockstream"
)

// The daemon of this machine, for verbs without --address: the first that needs
// one starts it, it lives on without them, and ends when it is idle.
//
// Its place is a directory with its sockets, named after the caller's mount
// namespace, because paths in bundles are seen from there, and after --root. Every
// client holds a shared lock on the file "lock" there for as long as it lives. The
// daemon ends only with an exclusive lock, and removes the place first: whoever
// had to wait finds another file, or none, and starts over.

// errNoDaemon says that nobody has started a daemon, so there are no containers.
var errNoDaemon = errors.New("no daemon is running")

const (
	// idleTime is how long a daemon stays without containers and clients.
	idleTime    = 30 * time.Second
	idleTimeEnv = "VMINIT_IDLE_TIMEOUT"

	// startTimeout is how long it may take to serve.
	startTimeout = 30 * time.Second

	maxDaemonLog = 1 << 20
)

// localPlace is the place of the daemon that belongs to this caller.
type localPlace struct{ dir, key string }

func (g *globals) localPlace() (p localPlace, err error) {
	vms, err := microvm.StateRoot()
	if err != nil {
		return p, err
	}
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/mnt", &ns); err != nil {
		return p, fmt.Errorf("find out the mount namespace (is /proc mounted?): %w", err)
	}
	p.key = fmt.Sprintf("local-%d", ns.Ino)
	if g.root != "" {
		root, err := filepath.Abs(g.root)
		if err != nil {
			return p, err
		}
		p.key += fmt.Sprintf("-%.6x", sha256.Sum256([]byte(root)))
	}
	p.dir = filepath.Join(filepath.Dir(vms), p.key)
	return p, nil
}

// tree is the name of the cgroup that the daemon has for itself. Places of the
// same name elsewhere have others.
func (p localPlace) tree() string {
	return fmt.Sprintf("vminit-%s-%.4x", p.key, sha256.Sum256([]byte(p.dir)))
}

func (p localPlace) file(name string) string { return filepath.Join(p.dir, name) }

// make makes the place, for this user alone.
func (p localPlace) make() error {
	if err := os.MkdirAll(filepath.Dir(p.dir), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(p.dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, dir := range []string{filepath.Dir(p.dir), p.dir} {
		var st unix.Stat_t
		if err := unix.Lstat(dir, &st); err != nil {
			return fmt.Errorf("stat %s: %w", dir, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
			return sys.Mark(sys.ErrState, fmt.Errorf("%s is not a directory that only this user can write to: remove it, or set %s", dir, microvm.StateDirEnv))
		}
	}
	return nil
}

// connectLocal connects to the daemon of this machine, and starts it if there is
// none and start is set. Otherwise the error is errNoDaemon.
func (g *globals) connectLocal(ctx context.Context, start bool) (*guest, error) {
	p, err := g.localPlace()
	if err != nil {
		return nil, err
	}
	lock, err := p.enter(start)
	if err != nil {
		return nil, err
	}
	conn, err := p.dial(ctx)
	if errors.Is(err, errNoDaemon) && start {
		conn, err = p.start(ctx, g.debug)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	guest := newGuest(ttrpc.NewClient(conn), func(ctx context.Context) (vsockstream.Conn, error) {
		return vsockstream.Dial(ctx, "unix://"+p.file("stream.sock"))
	})
	guest.lock, guest.local = lock, true
	return guest, nil
}

// enter takes the shared lock of a client, in a place that it makes if that is
// wanted.
func (p localPlace) enter(create bool) (*os.File, error) {
	for {
		if create {
			if err := p.make(); err != nil {
				return nil, fmt.Errorf("make a place for the daemon: %w", err)
			}
		}
		lock, err := lockFile(p.file("lock"), unix.LOCK_SH, create)
		switch {
		case err == nil:
			return lock, nil
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case !create:
			return nil, errNoDaemon
		}
		// A daemon has removed the place meanwhile.
	}
}

// lockFile opens the file and locks it, flock(2). What it returns is the file
// that has the name, not one that was removed while we waited.
func lockFile(name string, how int, create bool) (*os.File, error) {
	flags := os.O_RDWR | unix.O_NOFOLLOW
	if create {
		flags |= os.O_CREATE
	}
	for {
		f, err := os.OpenFile(name, flags, 0o600)
		if err != nil {
			return nil, err
		}
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.Flock(int(f.Fd()), how)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if named, err := os.Lstat(name); err == nil && os.SameFile(mine, named) {
			return f, nil
		}
		f.Close()
	}
}

// dial connects to a daemon that runs.
func (p localPlace) dial(ctx context.Context) (vsockstream.Conn, error) {
	conn, err := vsockstream.Dial(ctx, "unix://"+p.file("rpc.sock"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED) { // never there, or killed
		return nil, errNoDaemon
	}
	return conn, err
}

// start starts the daemon, unless another client has just done so.
func (p localPlace) start(ctx context.Context, debug bool) (vsockstream.Conn, error) {
	starting, err := lockFile(p.file("start"), unix.LOCK_EX, true)
	if err != nil {
		return nil, err
	}
	defer starting.Close()
	conn, err := p.dial(ctx)
	if !errors.Is(err, errNoDaemon) {
		return conn, err
	}
	if err := p.spawn(ctx, debug); err != nil {
		return nil, fmt.Errorf("start the daemon: %w", err)
	}
	return p.dial(ctx)
}

// spawn runs the daemon and waits until it serves.
func (p localPlace) spawn(ctx context.Context, debug bool) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	daemon, err := findDaemon()
	if err != nil {
		return err
	}
	// What we have inherited beside stdio must not live as long as the daemon.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	log, err := openDaemonLog(p.file("daemon.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(daemon, "-listen", "unix://"+p.file("rpc.sock"), "-stream-listen", "unix://"+p.file("stream.sock"),
		"-cgroup-tree", p.tree(), "-idle-lock", p.file("lock"), "-idle-exit", idleFor(), "-ready-fd", "3")
	if debug {
		cmd.Args = append(cmd.Args, "-debug")
	}
	cmd.Dir, cmd.Env = "/", []string{defaultPath}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{tell}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	tell.Close()
	if err != nil {
		return err
	}
	defer cmd.Process.Release()
	stop := context.AfterFunc(ctx, func() { ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := io.ReadAll(io.LimitReader(ready, 4096))
	switch text := strings.TrimSpace(string(said)); {
	case string(said) == "\n":
		return nil
	case text != "":
		return errors.New(text)
	case err != nil:
		_ = cmd.Process.Kill()
		return fmt.Errorf("it does not get ready (its log is %s): %w", log.Name(), context.Cause(ctx))
	}
	return fmt.Errorf("%s has ended at once; its log is %s", daemon, log.Name())
}

// openDaemonLog opens the log for appending, unless it has grown too long.
func openDaemonLog(name string) (*os.File, error) {
	flags := os.O_WRONLY | os.O_CREATE | os.O_APPEND | unix.O_NOFOLLOW
	if fi, err := os.Lstat(name); err == nil && fi.Size() > maxDaemonLog {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(name, flags, 0o600)
}

func idleFor() string {
	if v := os.Getenv(idleTimeEnv); v != "" {
		return v
	}
	return idleTime.String()
}
