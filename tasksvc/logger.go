package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

const (
	// loggerReady bounds how long a logging process may take to say that it is
	// ready, and loggerEnd how long to end once it has the last byte.
	loggerReady = 10 * time.Second
	loggerEnd   = 10 * time.Second
	// loggerKill is how long it may take after SIGTERM.
	loggerKill = 2 * time.Second
)

// logger is a logging process (binary://PATH?KEY=VALUE, containerd's
// "binary" logging URI): it reads stdout from fd 3 and stderr from fd 4 and says
// on fd 5, by a byte or by closing it, that it is ready. It runs as root in the
// guest, outside of the container; if it dies the output is thrown away.
type logger struct {
	uri   string
	ends  [2]*os.File // of the pipes it reads, until it has them; nil is nothing
	child *nsexec.Process
}

// openLogger makes the pipe between the daemon and the logging process for fd 1
// or 2. URIs that are the same share one process.
func (s *stdio) openLogger(uri string, fd int) (end *os.File, err error) {
	if fd == 0 {
		return nil, sys.Invalidf("a binary:// URI is for output")
	}
	if _, err := loggerArgs(uri); err != nil {
		return nil, err
	}
	var l *logger
	for _, other := range s.loggers {
		if other.uri == uri {
			l = other
		}
	}
	if l == nil {
		l = &logger{uri: uri}
		s.loggers = append(s.loggers, l)
	}
	l.ends[fd-1], end, err = pipe(false, 0, 0)
	return end, err
}

// loggerArgs returns the program and its arguments: keys and values of the
// query, in their order, empty values left out.
func loggerArgs(uri string) ([]string, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, sys.Mark(sys.ErrInvalid, err)
	}
	path := filepath.Join(u.Host, u.Path)
	if !filepath.IsAbs(path) {
		return nil, sys.Invalidf("the path of the logging binary, %q, is not absolute", path)
	}
	args := []string{path}
	if u.RawQuery == "" {
		return args, nil
	}
	for pair := range strings.SplitSeq(u.RawQuery, "&") {
		key, value, _ := strings.Cut(pair, "=")
		for _, text := range []string{key, value} {
			text, err := url.QueryUnescape(text)
			if err != nil {
				return nil, sys.Mark(sys.ErrInvalid, err)
			}
			if text != "" {
				args = append(args, text)
			}
		}
	}
	return args, nil
}

// startLoggers launches the logging processes and waits until they are ready.
func (s *stdio) startLoggers(ctx context.Context, p *process) error {
	if len(s.loggers) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, loggerReady)
	defer cancel()
	c := p.container
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "CONTAINER_ID=" + c.id, "CONTAINER_NAMESPACE=" + c.namespace}
	if p.id != "" {
		env = append(env, "CONTAINER_EXEC_ID="+p.id)
	}
	for _, l := range s.loggers {
		if err := l.start(ctx, c.svc, env); err != nil {
			return fmt.Errorf("logging process %s: %w", l.uri, err)
		}
	}
	return nil
}

// start launches one. The ends of its pipes are closed in any case.
func (l *logger) start(ctx context.Context, svc *Service, env []string) error {
	defer l.closeEnds()
	args, err := loggerArgs(l.uri)
	if err != nil {
		return err
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	ready, theirs, err := pipe(true, 0, 0)
	if err != nil {
		return err
	}
	defer ready.Close()
	defer theirs.Close()
	files := []int{int(null.Fd()), int(null.Fd()), int(theirs.Fd())}
	for i, f := range l.ends {
		if f != nil {
			files[i] = int(f.Fd())
		}
	}
	program, err := compileLogger(svc, args, env)
	if err != nil {
		return err
	}
	for _, r := range program.stdio {
		program.program.Bind(r, int(null.Fd()))
	}
	program.program.BindFiles(files)
	child, err := svc.cfg.Launcher.Start(nsexec.Launch{Program: program.program, Cgroup: -1, PIDNS: -1})
	if err != nil {
		program.program.Close()
		return err
	}
	theirs.Close() // the child has it: its end is the end
	deadline, _ := ctx.Deadline()
	if err = child.AwaitExec(deadline); err == nil {
		err = awaitReady(ctx, ready, child.Process)
	} else if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOEXEC) {
		err = sys.Mark(sys.ErrInvalid, err)
	}
	if err != nil {
		reapFailed(child)
		return err
	}
	l.child = child.Process
	return nil
}

// compileLogger is the launch of a logging process: root with everything that
// the daemon can pass on, in the daemon's namespaces and cgroup.
func compileLogger(svc *Service, args, env []string) (*plan, error) {
	p, err := svc.cfg.Launcher.NewProgram()
	if err != nil {
		return nil, err
	}
	p.PassFiles(3)
	pl := &plan{program: p, stdio: p.SetupStdio()}
	all := nsexec.Capabilities()
	proc := &specs.Process{Args: args, Env: env, Cwd: "/", Capabilities: &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}}
	pl.setOOMScore(proc, compileOptions{oomAdjust: svc.oomAdjust})
	p.Finish(nsexec.Finish{Process: proc, Grantable: svc.cfg.Launcher.Capabilities()})
	return pl.checked()
}

// awaitReady waits for a byte, or for the end of the pipe as long as that is not
// the end of the process.
func awaitReady(ctx context.Context, ready *os.File, child *nsexec.Process) error {
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })()
	_, err := ready.Read(make([]byte, 1))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		select {
		case <-child.Done():
			return sys.Mark(sys.ErrState, fmt.Errorf("it ended with status %d before it was ready", child.Exit().Code))
		case <-time.After(20 * time.Millisecond):
			return nil
		}
	case ctx.Err() != nil:
		return fmt.Errorf("wait until it is ready (a byte on fd 5, or its end): %w", ctx.Err())
	}
	return err
}

func (l *logger) closeEnds() {
	for i, f := range l.ends {
		if f != nil {
			f.Close()
			l.ends[i] = nil
		}
	}
}

// end sees to it that the process, whose pipes have ended, ends, too. It does
// not wait.
func (l *logger) end() {
	l.closeEnds()
	child := l.child
	if child == nil {
		return
	}
	l.child = nil
	go endLogger(child, loggerEnd, loggerKill)
}

// endLogger waits, asks, and then insists.
func endLogger(child *nsexec.Process, wait, kill time.Duration) {
	defer child.Close()
	for _, x := range []struct {
		patience time.Duration
		signal   unix.Signal
	}{{wait, unix.SIGTERM}, {kill, unix.SIGKILL}} {
		select {
		case <-child.Done():
			return
		case <-time.After(x.patience):
			_ = child.Signal(x.signal)
		}
	}
	<-child.Done()
}
