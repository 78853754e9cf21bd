package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/sys"
)

// execOptions are the flags of exec.
type execOptions struct {
	process    processOptions
	file       string
	pidFile    string
	detach     bool
	gids       []string
	caps       []string
	noNewPrivs bool
	apparmor   string
	label      string
	handover
}

func newExecCommand(g *globals) *cobra.Command {
	o := new(execOptions)
	cmd := &cobra.Command{
		Use:   "exec [flags] ID CMD [ARG...]",
		Short: "Run another process in a running container",
		Long: `Run a process in a running container. It is like the one of the container's
config.json but for what the flags and CMD say, or what --process describes.

Its stdin, stdout and stderr are ours. With --tty it gets a terminal: ours is passed
through, or the master end is sent to --console-socket. Signals are passed on, and
the exit status is the process's; 125 if it did not get to run, 126 or 127 if its
program cannot be executed or does not exist.`,
		Example: `  vminitctl exec c1 ls -l
  vminitctl exec -t -e TERM=linux c1 sh
  vminitctl exec -d --pid-file pid -u 1000:1000 c1 server
  vminitctl exec --process process.json c1`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.inherit(); err != nil {
				return asUnawaited(verbError(cmd, args[0], err))
			}
			o.process.args = args[1:]
			code := 0
			ctx, signals := watchAllSignals(cmd.Context())
			defer signals.stop()
			cmd.SetContext(ctx)
			err := g.callAwaiting(cmd, args[0], !o.detach, func(ctx context.Context, guest *guest) (err error) {
				code, err = o.run(ctx, guest, args[0], signals)
				return err
			})
			if err == nil && code != 0 {
				return exitError{code: code}
			}
			return err
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.process.tty, "tty", "t", false, "give it a terminal")
	f.BoolVarP(&o.detach, "detach", "d", false, "do not wait for it")
	f.StringVarP(&o.file, "process", "p", "", "take the process from this JSON file (as process in config.json)")
	f.StringVar(&o.pidFile, "pid-file", "", "write its process id here")
	f.StringVar(&o.consoleSocket, "console-socket", "", "unix socket that gets the master of its terminal (with --detach)")
	f.StringVarP(&o.process.user, "user", "u", "", "run as UID[:GID]")
	f.StringSliceVarP(&o.gids, "additional-gids", "g", nil, "additional group ids")
	f.StringVar(&o.process.cwd, "cwd", "", "working directory")
	f.StringArrayVarP(&o.process.env, "env", "e", nil, "set an environment variable, NAME=VALUE, or pass NAME on")
	f.StringSliceVarP(&o.caps, "cap", "c", nil, "add a capability")
	f.BoolVar(&o.noNewPrivs, "no-new-privs", false, "forbid it to gain privileges")
	f.StringVar(&o.apparmor, "apparmor", "", "AppArmor profile")
	f.StringVar(&o.label, "process-label", "", "SELinux label")
	f.IntVar(&o.preserve, "preserve-fds", 0, "pass on this many more descriptors from 3 on (after those of LISTEN_FDS)")
	f.Bool("no-subreaper", false, "accepted, without effect")
	f.Bool("ignore-paused", false, "accepted; a paused container takes no process")
	f.String("cgroup", "", "accepted if empty")
	for _, name := range []string{"no-subreaper", "ignore-paused", "cgroup"} {
		_ = f.MarkHidden(name)
	}
	return cmd
}

// run runs the process and returns its exit status, 0 if it is not awaited.
func (o *execOptions) run(ctx context.Context, guest *guest, id string, signals *allSignals) (code int, err error) {
	p, err := o.spec(ctx, guest, id)
	if err != nil {
		return 0, err
	}
	x := &attached{
		guest: guest, id: id, execID: "exec-" + strings.TrimPrefix(randomID(), "c-"), signals: signals, detach: o.detach, terminal: p.Terminal,
		handover: o.handover,
	}
	if err := x.check(); err != nil {
		return 0, err
	}
	defer x.close()
	if p.Terminal && p.ConsoleSize == nil {
		p.ConsoleSize = x.size()
	}
	body, err := json.Marshal(p)
	if err != nil {
		return 0, err
	}
	if err := x.open(ctx); err != nil {
		return 0, err
	}
	request := &taskv3.ExecProcessRequest{
		ID: id, ExecID: x.execID, Terminal: p.Terminal, Stdin: x.stdin, Stdout: x.stdout, Stderr: x.stderr,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: body},
	}
	if !o.detach && o.pidFile == "" && x.streams == nil { // nothing to do between its start and its end
		code, err := x.during(ctx, func(ctx context.Context) (uint32, error) {
			exit, err := guest.runtime.RunExec(ctx, request)
			return exit.GetExitStatus(), err
		})
		if err != nil {
			return 0, startFailure(err)
		}
		return code, nil
	}
	if _, err := guest.task.Exec(ctx, request); err != nil {
		return 0, err
	}
	started, err := guest.task.Start(ctx, &taskv3.StartRequest{ID: id, ExecID: x.execID})
	if err != nil {
		x.forget(ctx)
		return 0, startFailure(err)
	}
	if o.pidFile != "" {
		if err := writePidFile(o.pidFile, started.Pid); err != nil {
			x.kill(ctx)
			return 0, err
		}
	}
	if o.detach {
		return 0, nil
	}
	return x.await(ctx)
}

// spec is the process to run.
func (o *execOptions) spec(ctx context.Context, guest *guest, id string) (*specs.Process, error) {
	if o.file != "" {
		return readProcess(o.file)
	}
	c, err := guest.container(ctx, id, true)
	if err != nil {
		return nil, err
	}
	p := new(specs.Process)
	if len(c.Process) == 0 {
		return nil, sys.Invalidf("the container has no process to take after: describe one with --process")
	}
	if err := json.Unmarshal(c.Process, p); err != nil {
		return nil, err
	}
	if len(o.process.args) == 0 {
		return nil, sys.Invalidf("no command given")
	}
	var users *userFiles
	if guest.local && o.process.user != "" {
		users = readUserFiles(c.Rootfs)
	}
	if err := o.process.apply(p, users); err != nil {
		return nil, err
	}
	for _, text := range o.gids {
		gid, err := parseID(text)
		if err != nil {
			return nil, fmt.Errorf("--additional-gids: %w", err)
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids, gid)
	}
	o.addCapabilities(p)
	p.NoNewPrivileges = p.NoNewPrivileges || o.noNewPrivs
	if o.apparmor != "" {
		p.ApparmorProfile = o.apparmor
	}
	if o.label != "" {
		p.SelinuxLabel = o.label
	}
	return p, nil
}

// addCapabilities adds those of --cap, as runc does: not to the inheritable set,
// from which programs that are executed later could take them.
func (o *execOptions) addCapabilities(p *specs.Process) {
	if len(o.caps) == 0 {
		return
	}
	if p.Capabilities == nil {
		p.Capabilities = new(specs.LinuxCapabilities)
	}
	for _, name := range o.caps {
		name = "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
		for _, set := range []*[]string{&p.Capabilities.Bounding, &p.Capabilities.Effective, &p.Capabilities.Permitted} {
			if !slices.Contains(*set, name) {
				*set = append(*set, name)
			}
		}
	}
}

// readProcess reads a process from a JSON file, "-" being stdin.
func readProcess(name string) (*specs.Process, error) {
	data, err := readInput(name)
	if err != nil {
		return nil, fmt.Errorf("--process: %w", err)
	}
	p := new(specs.Process)
	if err := json.Unmarshal(data, p); err != nil {
		return nil, fmt.Errorf("--process %s: %w", name, sys.Mark(sys.ErrInvalid, err))
	}
	return p, nil
}

// readInput reads a file of bounded length, "-" being stdin.
func readInput(name string) ([]byte, error) {
	f := os.Stdin
	if name != "-" {
		var err error
		if f, err = os.Open(filepath.Clean(name)); err != nil {
			return nil, err
		}
		defer f.Close()
	}
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err == nil && len(data) > maxConfig {
		err = sys.Invalidf("%s has more than the %d bytes allowed", name, maxConfig)
	}
	return data, err
}

// startFailure gives an error of a start that is awaited the exit status for it.
func startFailure(err error) error {
	var exit exitError
	if errors.As(startError("", err), &exit) {
		return exitError{exit.code, err}
	}
	return err
}
