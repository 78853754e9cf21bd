package main

import (
	"context"
	"os"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vminit/internal/sys"
)

// attached is a process of the OCI verbs with its stdio: our descriptors where
// the daemon can take them, streams for a terminal of ours and into a VM.
type attached struct {
	guest    *guest
	id       string
	execID   string // "" for a container's first process
	signals  *allSignals
	detach   bool
	terminal bool // it wants one
	handover

	stdin, stdout, stderr string // for the request
	streams               *stdio
	tty                   *terminal // ours, if it is passed through
	restore               func()
}

// check refuses what does not go together.
func (x *attached) check() error {
	switch {
	case x.consoleSocket != "" && !x.terminal:
		return sys.Invalidf("--console-socket: the process does not want a terminal")
	case x.consoleSocket != "" && !x.detach:
		return sys.Invalidf("--console-socket takes the terminal away: use it with --detach")
	case x.terminal && x.detach && x.consoleSocket == "":
		return sys.Invalidf("a process with a terminal that is not awaited needs a --console-socket that takes it")
	case (x.consoleSocket != "" || x.preserve > 0) && !x.guest.local:
		return sys.Unsupportedf("--console-socket and --preserve-fds need a daemon on this machine")
	case x.preserve > 0 && x.streaming():
		return sys.Unsupportedf("--preserve-fds does not go with a terminal that is passed through: use --console-socket")
	}
	if x.terminal && x.streaming() {
		x.tty, _ = openTerminal() // without one, bytes are passed on as they are
	}
	return nil
}

// streaming: bytes go through us.
func (x *attached) streaming() bool {
	return !x.guest.local || x.terminal && x.consoleSocket == ""
}

// size is that of our terminal, nil if it has none.
func (x *attached) size() *specs.Box {
	if x.tty == nil {
		return nil
	}
	return x.tty.size()
}

// open makes the stdio that the request names.
func (x *attached) open(ctx context.Context) (err error) {
	switch {
	case !x.streaming():
		if err := x.handover.open(ctx, x.guest); err != nil {
			return err
		}
		x.stdin, x.stdout, x.stderr = x.uri, x.uri, x.uri
	case !x.detach:
		if x.streams, err = openStdio(ctx, x.guest, true, x.terminal); err != nil {
			return err
		}
		x.stdin, x.stdout, x.stderr = x.streams.stdin, x.streams.stdout, x.streams.stderr
	}
	return nil
}

// await passes on signals and bytes until the process has ended, and returns its
// exit status.
func (x *attached) await(ctx context.Context) (int, error) {
	code, err := x.during(ctx, func(ctx context.Context) (uint32, error) {
		exit, err := x.guest.task.Wait(ctx, &taskv3.WaitRequest{ID: x.id, ExecID: x.execID})
		return exit.GetExitStatus(), err
	})
	if err == nil && x.streams != nil && x.execID != "" {
		x.forget(ctx)
	}
	return code, err
}

// during passes on signals and bytes until wait returns the exit status.
func (x *attached) during(ctx context.Context, wait func(context.Context) (uint32, error)) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if x.tty != nil && term.IsTerminal(int(os.Stdin.Fd())) {
		restore, err := x.tty.raw()
		if err != nil {
			return 0, err
		}
		x.restore = restore
	}
	if x.tty != nil {
		go x.tty.follow(ctx, x.guest, x.id, x.execID)
	}
	if x.streams != nil {
		x.streams.start(os.Stdout, os.Stderr)
		// Reading stdin cannot be interrupted: this goroutine ends with us.
		go x.streams.feed(os.Stdin, func() {
			_, _ = x.guest.task.CloseIO(ctx, &taskv3.CloseIORequest{ID: x.id, ExecID: x.execID, Stdin: true})
		})
		go x.streams.endBroken(ctx, func(sig unix.Signal) { x.signal(ctx, sig) })
	}
	x.signals.forwardTo(func(sig unix.Signal) { x.signal(ctx, sig) })
	defer x.signals.forwardTo(nil)
	exit, err := wait(ctx)
	if err != nil {
		return 0, err
	}
	if x.streams == nil {
		return int(exit), nil
	}
	if err := x.streams.drain(ctx); err != nil {
		return 0, err
	}
	return x.streams.status(exit)
}

// signal sends the process a signal. While RunExec has not started it there is
// nobody to take one. If that lasts, a signal that asks for the end has us end.
func (x *attached) signal(ctx context.Context, sig unix.Signal) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for ctx.Err() == nil {
		_, err := x.guest.task.Kill(ctx, &taskv3.KillRequest{ID: x.id, ExecID: x.execID, Signal: uint32(sig)})
		switch status.Code(err) {
		case codes.NotFound, codes.FailedPrecondition:
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
		case codes.DeadlineExceeded:
		default:
			return
		}
	}
	if ctx.Err() == context.DeadlineExceeded {
		x.signals.endBy(sig)
	}
}

// kill ends a process that is not wanted after all.
func (x *attached) kill(ctx context.Context) {
	if _, err := x.guest.task.Kill(ctx, &taskv3.KillRequest{ID: x.id, ExecID: x.execID, Signal: uint32(unix.SIGKILL)}); err != nil {
		return
	}
	_, _ = x.guest.task.Wait(ctx, &taskv3.WaitRequest{ID: x.id, ExecID: x.execID})
	x.forget(ctx)
}

// forget has the daemon forget an exec that has ended. One with descriptors of
// ours it forgets by itself.
func (x *attached) forget(ctx context.Context) {
	_, _ = x.guest.task.Delete(ctx, &taskv3.DeleteRequest{ID: x.id, ExecID: x.execID})
}

// close gives our terminal back and ends the stdio.
func (x *attached) close() {
	if x.restore != nil {
		x.restore()
	}
	if x.streams != nil {
		x.streams.Close()
	}
	x.handover.close()
}

// callAwaiting is call for a verb that, if await is set, waits for a process as
// long as that takes: --timeout then bounds the connection only. An error that
// has no exit status is 125 then.
func (g *globals) callAwaiting(cmd *cobra.Command, id string, await bool, fn func(context.Context, *guest) error) error {
	if !await {
		return g.call(cmd, id, fn)
	}
	dial, cancel := g.deadline(cmd.Context(), callTimeout)
	defer cancel()
	return asUnawaited(verbError(cmd, id, g.withRuntime(dial, cmd.Context(), id, false, fn)))
}
