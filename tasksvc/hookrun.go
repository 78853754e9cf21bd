package tasksvc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/cgroup2"
	"vminit/nsexec"
)

const (
	// maxHookText is how much of a failed hook's stderr is told, in bytes.
	maxHookText = 2 << 10
	// maxHookRest bounds what is read of it after the hook has ended: somebody
	// else may go on writing. A pipe holds 64 KiB.
	maxHookRest = 128 << 10
)

// hookLaunch is a hook ready to be launched.
type hookLaunch struct {
	plan     *plan
	cgroup   *cgroup2.Cgroup // it is born into, and that is killed if it fails
	pidns    int             // see nsexec.Launch
	uid, gid uint32          // of its user, in the guest
	dirs     []*os.File      // inputs of the program
}

// close releases what is needed up to the launch, and the program, which has to
// be run first if it is to be run.
func (l *hookLaunch) close() {
	for _, d := range l.dirs {
		d.Close()
	}
	l.plan.program.Close()
}

// runHooks runs the hooks of a name in order, up to the first that fails.
func (c *container) runHooks(ctx context.Context, name string, state specs.State, compile func(nsexec.Hook) (*hookLaunch, error)) error {
	for i := range hookList(c.spec.Hooks, name) {
		if err := c.runHook(ctx, name, i, state, compile); err != nil {
			return err
		}
	}
	return nil
}

// runHook runs one hook to its end. If it fails, does not end within its
// timeout or ctx ends, it is killed with everything in its cgroup.
func (c *container) runHook(ctx context.Context, name string, i int, state specs.State, compile func(nsexec.Hook) (*hookLaunch, error)) error {
	h := &hookList(c.spec.Hooks, name)[i]
	if h.Timeout != nil {
		var cancel context.CancelFunc
		limit := time.Duration(min(int64(*h.Timeout), math.MaxInt64/int64(time.Second))) * time.Second
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("killed after its timeout of %s", limit))
		defer cancel()
	}
	program := nsexec.Hook{Path: h.Path, Args: h.Args, Env: h.Env}
	if len(program.Args) == 0 {
		program.Args = []string{h.Path}
	}
	l, err := compile(program)
	if err != nil {
		return hookError(name, i, h.Path, err)
	}
	text, err := c.launchHook(ctx, l, state)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if len(text) > 0 {
		err = fmt.Errorf("%w: %s", err, text)
	}
	kill := l.cgroup.Kill
	if l.cgroup == c.hooks.cgroup {
		kill = func() error { return c.endHooks(ctx) }
	}
	return hookError(name, i, h.Path, errors.Join(err, kill()))
}

// launchHook launches a hook and waits for its end. It returns the end of what
// it has written to stderr.
func (c *container) launchHook(ctx context.Context, l *hookLaunch, state specs.State) (text []byte, err error) {
	defer l.close()
	io, err := openHookIO(state, l.uid, l.gid)
	if err != nil {
		return nil, err
	}
	defer io.close()
	if err := l.plan.program.Err(); err != nil {
		return nil, err
	}
	for i, r := range l.plan.stdio {
		l.plan.program.Bind(r, int(io.child[i].Fd()))
	}
	child, err := c.svc.cfg.Launcher.Start(nsexec.Launch{Program: l.plan.program, Cgroup: int(l.cgroup.Dir().Fd()), PIDNS: l.pidns})
	if err != nil {
		return nil, err
	}
	hook := child.Process
	stop := context.AfterFunc(ctx, func() { _ = hook.Signal(unix.SIGKILL) })
	defer stop()
	err = l.plan.run(child, nil, func(*nsexec.Registers) error {
		io.closeChild()
		return nil
	})
	if err != nil {
		reapFailed(child)
		return nil, err
	}
	select {
	case <-hook.Done():
	case <-ctx.Done():
		select {
		case <-hook.Done():
		case <-time.After(deleteTimeout): // stuck in the kernel: the reaper's, when it ends
			return io.text(), errors.New("it cannot be killed")
		}
	}
	defer hook.Close()
	switch st := hook.Exit(); {
	case st.Signal != 0:
		return io.text(), errors.New("killed by " + unix.SignalName(st.Signal))
	case st.Code != 0:
		return io.text(), errors.New("exit status " + strconv.Itoa(st.Code))
	}
	return nil, nil
}

// openOf opens a directory that a process is known by in /proc: its root or its
// working directory.
func openOf(p *nsexec.Process, name string) (f *os.File, err error) {
	err = p.WhileAlive(func(pid int) error {
		fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/"+name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			f = os.NewFile(uintptr(fd), name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open %s of process %d: %w", name, p.PID(), err)
	}
	return f, nil
}

// hookIO is the stdio of a hook: the state, nothing, and a pipe of which the
// end is kept.
type hookIO struct {
	child  [3]*os.File
	stderr *os.File
	tail   []byte        // the reader's until read is closed
	read   chan struct{} // closed when the reader is done
}

func openHookIO(state specs.State, uid, gid uint32) (io *hookIO, err error) {
	io = &hookIO{read: make(chan struct{})}
	defer func() {
		if err != nil {
			io.closeChild()
		}
	}()
	if io.child[0], err = stateFile(state); err != nil {
		return nil, err
	}
	if io.child[1], err = os.OpenFile("/dev/null", os.O_WRONLY, 0); err != nil {
		return nil, err
	}
	if io.stderr, io.child[2], err = pipe(true, int(uid), int(gid)); err != nil {
		return nil, err
	}
	go func() {
		defer close(io.read)
		buf := make([]byte, 4<<10)
		for {
			n, err := io.stderr.Read(buf)
			io.keep(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	return io, nil
}

// stateFile returns a file with the state that nobody can change, a
// memfd_create(2). A pipe would need somebody to write it, and a file can be
// opened again as /dev/stdin by every user.
func stateFile(state specs.State) (*os.File, error) {
	data, err := json.Marshal(state)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "state")
	if _, err = f.Write(data); err == nil {
		_, err = f.Seek(0, 0)
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("state for a hook: %w", err)
	}
	return f, nil
}

func (io *hookIO) keep(b []byte) {
	io.tail = append(io.tail, b...)
	if cut := len(io.tail) - maxHookText; cut > 0 {
		io.tail = append(io.tail[:0], io.tail[cut:]...)
	}
}

// text returns the end of what the hook, which has ended, has written.
func (io *hookIO) text() []byte {
	_ = io.stderr.SetReadDeadline(time.Unix(1, 0))
	<-io.read
	if rc, err := io.stderr.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) {
			buf := make([]byte, 4<<10)
			for rest := maxHookRest; rest > 0; {
				n, err := unix.Read(int(fd), buf)
				if err != nil || n == 0 {
					return
				}
				io.keep(buf[:n])
				rest -= n
			}
		})
	}
	return bytes.TrimSpace(io.tail)
}

func (io *hookIO) closeChild() {
	for i, f := range io.child {
		if f != nil {
			f.Close()
			io.child[i] = nil
		}
	}
}

func (io *hookIO) close() {
	io.closeChild()
	io.stderr.Close() // ends the reader
	<-io.read
}
