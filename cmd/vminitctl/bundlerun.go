package main

import (
	"context"
	"errors"
	"os"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/spf13/cobra"

	"vminit/internal/sys"
)

// bundleRun are the flags that run has for runc's form: run --bundle DIR ID.
type bundleRun struct {
	createOptions
	keep bool
}

// isBundleRun tells runc's form from the one that runs a command in a microVM: it
// has an id and no "--", and a bundle, if only the current directory.
func (o *runOptions) isBundleRun(cmd *cobra.Command, args []string) bool {
	if len(args) != 1 || cmd.ArgsLenAtDash() >= 0 || o.rootfs != "" || o.vm != "" {
		return false
	}
	if o.bundle == "" {
		_, err := os.Stat("config.json")
		return err == nil
	}
	return true
}

// runBundle runs a container on this machine, or wherever --address says.
func (o *runOptions) runBundle(cmd *cobra.Command, g *globals, id string) error {
	b := &o.runc
	b.bundle = o.bundle
	if err := b.inherit(); err != nil {
		return asUnawaited(verbError(cmd, id, err))
	}
	code := 0
	ctx, signals := watchAllSignals(cmd.Context())
	defer signals.stop()
	dial, cancel := g.deadline(ctx, callTimeout)
	defer cancel()
	err := verbError(cmd, id, g.withRuntime(dial, ctx, id, true, func(ctx context.Context, guest *guest) (err error) {
		code, err = b.run(ctx, g, guest, id, signals)
		return err
	}))
	if !b.detach {
		err = asUnawaited(err)
	}
	if err == nil && code != 0 {
		return exitError{code: code}
	}
	return err
}

// run creates and starts the container and, unless it is detached, waits for its
// end and deletes it.
func (b *bundleRun) run(ctx context.Context, g *globals, guest *guest, id string, signals *allSignals) (code int, err error) {
	r, err := b.request(guest, id)
	if err != nil {
		return 0, err
	}
	x := &attached{guest: guest, id: id, signals: signals, detach: b.detach, terminal: r.Terminal, handover: b.handover}
	if err := x.check(); err != nil {
		return 0, err
	}
	defer x.close()
	if err := x.open(ctx); err != nil {
		return 0, err
	}
	r.Stdin, r.Stdout, r.Stderr = x.stdin, x.stdout, x.stderr
	resp, err := guest.task.Create(ctx, r)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err == nil && (b.detach || b.keep) {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
		defer cancel()
		err = errors.Join(err, guest.forceDelete(ctx, id))
	}()
	if c, err := guest.container(ctx, id, false); err == nil {
		for _, w := range c.Warnings {
			g.warn(w)
		}
	}
	if b.pidFile != "" {
		if err := writePidFile(b.pidFile, resp.Pid); err != nil {
			return 0, err
		}
	}
	if _, err := guest.task.Start(ctx, &taskv3.StartRequest{ID: id}); err != nil {
		return 0, startFailure(err)
	}
	if b.detach {
		return 0, nil
	}
	return x.await(ctx)
}

// withRuntime connects within dial and runs fn within ctx.
func (g *globals) withRuntime(dial, ctx context.Context, id string, start bool, fn func(context.Context, *guest) error) error {
	if id == "" {
		return sys.Invalidf("the container's id is empty")
	}
	guest, err := g.runtime(dial, start)
	if errors.Is(err, errNoDaemon) {
		return errNotFound(id)
	}
	if err != nil {
		return err
	}
	defer guest.Close()
	return fn(withNamespace(ctx, g.namespace), guest)
}

// asUnawaited gives an error that kept a process from being awaited the exit
// status for it, which no container's can be mistaken for.
func asUnawaited(err error) error {
	var exit exitError
	if err == nil || errors.As(err, &exit) {
		return err
	}
	return exitError{exitFailure, err}
}
