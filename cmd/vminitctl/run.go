package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"vminit/internal/sys"
)

// runOptions are the flags of run.
type runOptions struct {
	machineOptions
	interactive bool
	tty         bool
	name        string
	vm          string
	rootfs      string
	bundle      string
	mounts      []string
	process     processOptions
	timeline    bool
	runc        bundleRun
}

func newRunCommand(g *globals) *cobra.Command {
	o := new(runOptions)
	cmd := &cobra.Command{
		Use:   "run [flags] [--] CMD [ARG...] | run [flags] --bundle DIR ID",
		Short: "Run a container in a microVM, or here from a bundle",
		Long: `Run a container, by default in a microVM of its own that boots for it and is
powered off after it. The exit status is the container's; 125 if it did not get
to run, 126 or 127 if its program cannot be executed or does not exist.

A directory given as --rootfs travels as a read-only image; what the container
writes goes to memory and is gone with it. The first signals are the
container's; the third interrupt ends it whether it likes or not.

With --bundle and an ID, and no "--", it is runc's run: create, start, wait and
delete, or with --detach only create and start, by the daemon of this machine (or
the one of --address). Its stdio is ours, a terminal is passed through or goes to
--console-socket, and all signals are the container's.`,
		Example: `  vminitctl run --rootfs ./rootfs -- echo hello
  vminitctl run -it --rootfs ./rootfs --memory 1G -- /bin/sh
  vminitctl run --timeline --rootfs image.erofs --env A=b --user 1000 -- ./prog
  vminitctl run --bundle ./bundle --
  vminitctl run --bundle ./bundle c1
  vminitctl run -d --pid-file pid --bundle ./bundle c1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.isBundleRun(cmd, args) {
				return o.runBundle(cmd, g, args[0])
			}
			o.process.args = args
			code, err := o.run(cmd.Context(), g)
			if err != nil {
				return asFailure(err)
			}
			if code != 0 {
				return exitError{code: code}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.interactive, "interactive", "i", false, "pass stdin on to the container")
	f.BoolVarP(&o.tty, "tty", "t", false, "give the container a terminal")
	f.StringVar(&o.name, "name", "", "name of the container (default: random)")
	f.StringVar(&o.vm, "vm", "", "run in this VM, which is running (see vm boot)")
	f.StringVar(&o.rootfs, "rootfs", "", "root file system: a directory, or an image of EROFS, ext4, squashfs, ...")
	f.StringVarP(&o.bundle, "bundle", "b", "", "OCI bundle to take config.json and the root file system from")
	f.StringArrayVar(&o.mounts, "mount", nil, "share SRC:DST or SRC:DST:ro with the container")
	f.StringArrayVarP(&o.process.env, "env", "e", nil, "set an environment variable, NAME=VALUE, or pass NAME on")
	f.StringVarP(&o.process.user, "user", "u", "", "run as UID[:GID], or as a name in the container's /etc/passwd")
	f.StringVar(&o.process.cwd, "cwd", "", "working directory in the container")
	f.BoolVar(&o.timeline, "timeline", false, "print to stderr what took how long")
	f.BoolVarP(&o.runc.detach, "detach", "d", false, "with an ID: do not wait for the container")
	f.BoolVar(&o.runc.keep, "keep", false, "with an ID: do not delete the container when it has ended")
	o.runc.register(f)
	o.machineOptions.register(f)
	return cmd
}

// asFailure gives an error that has no exit status the one of docker's.
func asFailure(err error) error {
	var exit exitError
	var cut interrupted
	switch {
	case errors.As(err, &exit):
		return err
	case errors.As(err, &cut):
		return exitError{exitInterrupted, fmt.Errorf("run: %w", err)}
	}
	return exitError{exitFailure, fmt.Errorf("run: %w", err)}
}

// run runs the container and returns its exit status.
func (o *runOptions) run(ctx context.Context, g *globals) (code int, err error) {
	if o.name == "" {
		o.name = randomID()
	}
	ctx, signals := watchSignals(ctx)
	defer signals.stop()
	c := &container{
		id: o.name, stdin: o.interactive, signals: signals,
		timeline: new(timeline), progress: newProgress(),
	}
	defer c.progress.done()
	if o.tty {
		if c.terminal, err = openTerminal(); err != nil {
			return 0, err
		}
		o.process.tty, o.process.size = true, c.terminal.size()
	}
	spec, rootfs, err := o.config(g.namespace)
	if err != nil {
		return 0, err
	}
	c.spec = spec
	place := &workplace{options: o, globals: g, container: c, rootfs: rootfs, began: time.Now()}
	c.settled = place.settled
	defer place.close()
	if err := place.open(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
			return 0, cause
		}
		return 0, err
	}
	code, err = c.run(withNamespace(ctx, g.namespace))
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if c.outOfMemory {
		fmt.Fprintf(os.Stderr, "vminitctl: %s was out of memory and killed: give it more with --memory\n", c.id)
	}
	if err := place.leave(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "vminitctl: %v\n", err)
	}
	if o.timeline {
		if err := c.timeline.print(os.Stderr, g.json); err != nil {
			return code, err
		}
	}
	return code, err
}

// config makes the container's config, but for the user, and says where its
// root file system is on this host.
func (o *runOptions) config(namespace string) (spec *specs.Spec, rootfs string, err error) {
	if o.bundle == "" {
		if o.rootfs == "" {
			return nil, "", sys.Invalidf("name a root file system with --rootfs DIR or IMAGE, or a bundle with --bundle DIR")
		}
		return defaultSpec(namespace, o.name), o.rootfs, nil
	}
	if spec, rootfs, err = readBundle(o.bundle); err != nil {
		return nil, "", err
	}
	if o.rootfs != "" {
		rootfs = o.rootfs
	}
	if rootfs == "" {
		return nil, "", sys.Invalidf("bundle %s names no root file system; give one with --rootfs", o.bundle)
	}
	readOnly := spec.Root != nil && spec.Root.Readonly
	spec.Root = &specs.Root{Path: "rootfs", Readonly: readOnly}
	return spec, rootfs, nil
}

func randomID() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand
	return "c-" + hex.EncodeToString(b[:])
}

// bootTimeout is how long a guest may take to serve; under TCG on a busy
// machine that is seconds.
const bootTimeout = 2 * time.Minute

// shutdownTimeout is how long a guest may take to power off.
const shutdownTimeout = 20 * time.Second
