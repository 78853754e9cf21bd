package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/sys"
)

// createOptions are the flags of create, which run has too.
type createOptions struct {
	bundle       string
	pidFile      string
	noNewKeyring bool
	detach       bool // the container outlives us
	handover
}

func newCreateCommand(g *globals) *cobra.Command {
	o := &createOptions{detach: true}
	cmd := &cobra.Command{
		Use:   "create [flags] ID",
		Short: "Create a container from a bundle, up to its start",
		Long: `Create a container from an OCI bundle. Everything is set up, hooks included, but
the user's program runs only after start. Our stdin, stdout and stderr become the
container's own, whatever they are.

With process.terminal in config.json the container gets a terminal, whose master
end is sent to --console-socket. In a VM (--address) the bundle is a path in there,
and the container has no stdio.`,
		Example: `  vminitctl create --bundle ./bundle c1
  vminitctl create -b ./bundle --pid-file pid c1 <in >out 2>err
  vminitctl create --preserve-fds 1 c1 3<file`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := args[0]
			return verbError(cmd, id, func() error {
				if err := o.inherit(); err != nil {
					return err
				}
				ctx, cancel := g.deadline(cmd.Context(), callTimeout)
				defer cancel()
				return g.withRuntime(ctx, ctx, id, true, func(ctx context.Context, guest *guest) error {
					return o.create(ctx, g, guest, id)
				})
			}())
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.bundle, "bundle", "b", "", "the bundle's directory (default: the current one)")
	o.register(f)
	return cmd
}

// register adds the flags but --bundle.
func (o *createOptions) register(f *pflag.FlagSet) {
	f.StringVar(&o.pidFile, "pid-file", "", "write the process id here")
	f.StringVar(&o.consoleSocket, "console-socket", "", "unix socket that gets the master of the container's terminal")
	f.IntVar(&o.preserve, "preserve-fds", 0, "pass on this many more descriptors from 3 on (after those of LISTEN_FDS)")
	f.BoolVar(&o.noNewKeyring, "no-new-keyring", false, "keep the daemon's session keyring")
	f.Bool("no-pivot", false, "accepted; a container always pivots into its root, in an initramfs too")
	f.Bool("no-subreaper", false, "accepted, without effect")
	_ = f.MarkHidden("no-subreaper")
}

// create creates the container. Whatever fails, nothing stays behind.
func (o *createOptions) create(ctx context.Context, g *globals, guest *guest, id string) error {
	r, err := o.request(guest, id)
	if err != nil {
		return err
	}
	if guest.local {
		defer o.handover.close()
		if err := o.handover.open(ctx, guest); err != nil {
			return err
		}
		r.Stdin, r.Stdout, r.Stderr = o.uri, o.uri, o.uri
	}
	resp, err := guest.task.Create(ctx, r)
	if err != nil {
		return err
	}
	if o.pidFile != "" {
		if err := writePidFile(o.pidFile, resp.Pid); err != nil {
			return errors.Join(err, guest.forceDelete(ctx, id))
		}
	}
	if c, err := guest.container(ctx, id, false); err == nil {
		for _, w := range c.Warnings {
			g.warn(w)
		}
	}
	return nil
}

// request is the call but for its stdio.
func (o *createOptions) request(guest *guest, id string) (*taskv3.CreateTaskRequest, error) {
	r := &taskv3.CreateTaskRequest{ID: id, Bundle: o.bundle}
	if !guest.local {
		if o.consoleSocket != "" || o.preserve > 0 {
			return nil, sys.Unsupportedf("--console-socket and --preserve-fds need a daemon on this machine")
		}
		if !filepath.IsAbs(o.bundle) {
			return nil, sys.Invalidf("--bundle %q: want the absolute path of a bundle in the VM", o.bundle)
		}
		return r, nil
	}
	var err error
	if r.Bundle, err = filepath.Abs(o.bundle); err != nil {
		return nil, err
	}
	r.Terminal = wantsTerminal(r.Bundle)
	switch {
	case r.Terminal && o.consoleSocket == "" && o.detach:
		return nil, sys.Invalidf("config.json asks for a terminal: give a --console-socket that takes it, or set process.terminal to false")
	case !r.Terminal && o.consoleSocket != "":
		return nil, sys.Invalidf("--console-socket: config.json does not ask for a terminal (process.terminal)")
	}
	if o.noNewKeyring {
		r.Options, err = anypb.New(&runcoptions.Options{NoNewKeyring: true})
	}
	return r, err
}

// wantsTerminal reads process.terminal of a bundle's config. What is wrong with
// the config is for the daemon to say.
func wantsTerminal(bundle string) bool {
	var config struct {
		Process struct {
			Terminal bool `json:"terminal"`
		} `json:"process"`
	}
	name := filepath.Join(bundle, "config.json")
	if fi, err := os.Stat(name); err != nil || !fi.Mode().IsRegular() || fi.Size() > maxConfig {
		return false
	}
	data, err := os.ReadFile(name)
	return err == nil && json.Unmarshal(data, &config) == nil && config.Process.Terminal
}

// writePidFile writes a bare number; who sees the file sees all of it.
func writePidFile(name string, pid uint32) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".pid-*")
	if err != nil {
		return fmt.Errorf("--pid-file: %w", err)
	}
	_, err = f.WriteString(strconv.FormatUint(uint64(pid), 10))
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("--pid-file: %w", err)
	}
	return nil
}
