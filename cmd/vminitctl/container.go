package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bundleapi "vminit/api/services/bundle/v1"
)

// container is one that is to run to its end with our stdio.
type container struct {
	guest    *guest
	id       string
	spec     *specs.Spec
	rootfs   []*types.Mount
	stdin    bool
	terminal *terminal // nil: none wanted
	signals  *signals
	timeline *timeline
	progress *progress
	settled  func() // called when the guest has created it

	stdio   *stdio
	created bool

	outOfMemory bool // it was killed for that
}

// run runs the container and returns its exit status. ctx carries the namespace;
// when it ends, so does the container.
func (c *container) run(ctx context.Context) (code int, err error) {
	defer func() { c.remove(ctx) }()
	if err := c.create(ctx); err != nil {
		return 0, exitError{exitFailure, fmt.Errorf("create %s: %w", c.id, describe(err))}
	}
	c.settled()
	oom := c.watchOOM(ctx)
	c.progress.done()
	// Without stdin nobody would hear a Ctrl-C in raw mode.
	if c.terminal != nil && c.stdin && term.IsTerminal(int(os.Stdin.Fd())) {
		restore, err := c.terminal.raw()
		if err != nil {
			return 0, exitError{exitFailure, err}
		}
		defer restore()
	}
	c.stdio.start(os.Stdout, os.Stderr)
	if err := c.start(ctx); err != nil {
		return 0, startError(c.id, err)
	}
	stop := c.relay(ctx)
	defer stop()

	status, err := c.wait(ctx)
	if err != nil {
		return 0, exitError{exitFailure, fmt.Errorf("wait for %s: %w", c.id, describe(err))}
	}
	c.outOfMemory = status == 128+int(unix.SIGKILL) && oom()
	return status, nil
}

// create sends the bundle and creates the container.
func (c *container) create(ctx context.Context) error {
	defer c.timeline.begin("create")()
	config, err := json.Marshal(c.spec)
	if err != nil {
		return err
	}
	bundle, err := c.guest.bundle.Create(ctx, &bundleapi.CreateRequest{Id: c.id, Files: map[string][]byte{"config.json": config}})
	if err != nil {
		return err
	}
	if c.stdio, err = openStdio(ctx, c.guest, c.stdin, c.terminal != nil); err != nil {
		return err
	}
	_, err = c.guest.task.Create(ctx, &taskv3.CreateTaskRequest{
		ID: c.id, Bundle: bundle.Bundle, Rootfs: c.rootfs, Terminal: c.terminal != nil,
		Stdin: c.stdio.stdin, Stdout: c.stdio.stdout, Stderr: c.stdio.stderr,
	})
	c.created = err == nil
	return err
}

func (c *container) start(ctx context.Context) error {
	defer c.timeline.begin("start")()
	_, err := c.guest.task.Start(ctx, &taskv3.StartRequest{ID: c.id})
	return err
}

// relay passes on what happens here to the running container, until stop:
// signals, the size of the terminal and stdin.
func (c *container) relay(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	kill := func(sig unix.Signal) {
		_, _ = c.guest.task.Kill(ctx, &taskv3.KillRequest{ID: c.id, Signal: uint32(sig)})
	}
	c.signals.forwardTo(kill)
	go c.stdio.endBroken(ctx, kill)
	if c.terminal != nil {
		go c.terminal.follow(ctx, c.guest, c.id, "")
	}
	if c.stdin {
		// Reading stdin cannot be interrupted: this goroutine ends with us.
		go c.stdio.feed(os.Stdin, func() {
			_, _ = c.guest.task.CloseIO(ctx, &taskv3.CloseIORequest{ID: c.id, Stdin: true})
		})
	}
	return func() {
		cancel()
		c.signals.forwardTo(nil)
	}
}

// wait waits for the end of the container and of its output.
func (c *container) wait(ctx context.Context) (code int, err error) {
	end := c.timeline.begin("run")
	exit, err := c.guest.task.Wait(ctx, &taskv3.WaitRequest{ID: c.id})
	if err != nil {
		return 0, err
	}
	end()
	defer c.timeline.begin("drain output")()
	if err := c.stdio.drain(ctx); err != nil {
		return 0, err
	}
	return c.stdio.status(exit.ExitStatus)
}

// removeTimeout bounds the end of a container whose exit we need not wait for.
const removeTimeout = 5 * time.Second

// remove kills the container if it lives, deletes it and ends its streams, also
// after ctx has ended.
func (c *container) remove(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if c.created {
		end := c.timeline.begin("delete")
		if _, err := c.guest.task.Delete(ctx, &taskv3.DeleteRequest{ID: c.id}); status.Code(err) == codes.FailedPrecondition {
			_, _ = c.guest.task.Kill(ctx, &taskv3.KillRequest{ID: c.id, Signal: uint32(unix.SIGKILL), All: true})
			if _, err := c.guest.task.Wait(ctx, &taskv3.WaitRequest{ID: c.id}); err == nil {
				_, _ = c.guest.task.Delete(ctx, &taskv3.DeleteRequest{ID: c.id})
			}
		}
		end()
	}
	if c.stdio != nil {
		c.stdio.Close()
	}
}

// startError says what kept a container from running, with the exit status that
// docker gives it.
func startError(id string, err error) error {
	code := exitFailure
	// What execve(2) answered has no status code of its own, only this text.
	if text := status.Convert(err).Message(); strings.HasPrefix(text, "exec ") {
		says := func(what string) bool { return strings.Contains(text, what) }
		switch {
		case says("executable file not found"), says(unix.ENOENT.Error()):
			code = exitNotFound
		case says(unix.EACCES.Error()), says(unix.ENOEXEC.Error()):
			code = exitNotExecutable
		}
	}
	return exitError{code, fmt.Errorf("start %s: %w", id, describe(err))}
}

// describe takes the wrapping of a status off an error: people want its text.
func describe(err error) error {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return errors.New(s.GRPCStatus().Message())
	}
	return err
}
