package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"

	"vminit/internal/sys"
)

// globals are the flags that every verb has.
type globals struct {
	address       string
	streamAddress string
	namespace     string
	json          bool
	timeout       time.Duration
	debug         bool

	// As runc and crun have them.
	root      string
	log       string
	logFormat string
}

// newRootCommand returns the whole tree of commands.
func newRootCommand(g *globals) *cobra.Command {
	root := &cobra.Command{
		Use:   "vminitctl",
		Short: "Run containers, in microVMs or here",
		Long: `vminitctl boots microVMs whose PID 1 is vminitd and runs containers in them.

  vminitctl run --rootfs DIR -- CMD      a container in a microVM of its own
  vminitctl vm boot --name v1            a microVM that stays
  vminitctl run --vm v1 --rootfs DIR -- CMD

It is also an OCI runtime's command line, as runc's. Without --address the
containers are on this machine, kept by a daemon that is started when it is
needed and ends when it is idle.

  vminitctl spec --bundle DIR; vminitctl run --bundle DIR ID
  vminitctl create --bundle DIR ID; vminitctl start ID; vminitctl state ID
  vminitctl kill ID TERM; vminitctl delete ID`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetVersionTemplate("vminitctl {{.Version}}\n")
	f := root.PersistentFlags()
	f.StringVar(&g.address, "address", os.Getenv("VMINIT_ADDRESS"), "daemon to talk to: unix:///path, vsock://CID:PORT or vm://NAME (env VMINIT_ADDRESS)")
	f.StringVar(&g.streamAddress, "stream-address", os.Getenv("VMINIT_STREAM_ADDRESS"), "its stream port, where --address does not tell (env VMINIT_STREAM_ADDRESS)")
	f.StringVar(&g.namespace, "namespace", "default", "namespace of the containers")
	f.BoolVar(&g.json, "json", false, "print JSON")
	f.DurationVar(&g.timeout, "timeout", 0, "give up waiting for a VM or daemon after this long (default: what suits the verb)")
	f.BoolVar(&g.debug, "debug", false, "say on stderr what is going on")
	addRuntimeFlags(root, g)

	root.AddGroup(
		&cobra.Group{ID: groupVM, Title: "MicroVMs:"},
		&cobra.Group{ID: groupOCI, Title: "OCI runtime:"},
		&cobra.Group{ID: groupInsight, Title: "Insight:"},
	)
	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupVM, newRunCommand(g), newVMCommand(g), newInitramfsCommand(g))
	add(groupOCI,
		newCreateCommand(g),
		newStartCommand(g),
		newStateCommand(g),
		newKillCommand(g),
		newDeleteCommand(g),
		newExecCommand(g),
		newListCommand(g),
		newPsCommand(g),
		newPauseCommand(g),
		newResumeCommand(g),
		newUpdateCommand(g),
		newEventsCommand(g),
		newSpecCommand(),
		newFeaturesCommand(),
	)
	add(groupInsight,
		newPlanCommand(g),
		newCheckCommand(g),
		newStatsCommand(g),
		newInfoCommand(g),
		newDaemonCommand(g),
		newVersionCommand(g),
	)
	return root
}

// Groups of verbs in the help.
const (
	groupVM      = "vm"
	groupOCI     = "oci"
	groupInsight = "insight"
)

// addRuntimeFlags takes the global flags of runc and crun, so that tools written
// for those work.
func addRuntimeFlags(root *cobra.Command, g *globals) {
	f := root.PersistentFlags()
	f.StringVar(&g.root, "root", "", "a daemon for this directory's sake: containers of different roots do not see each other")
	f.StringVar(&g.log, "log", "", "also write errors to this file")
	f.StringVar(&g.logFormat, "log-format", "text", "of --log: text or json")
	f.Bool("systemd-cgroup", false, "must be false: there is no systemd")
	f.String("cgroup-manager", "cgroupfs", "must be cgroupfs")
	f.String("rootless", "auto", "ignored")
	f.String("criu", "", "ignored")
	for _, name := range []string{"systemd-cgroup", "cgroup-manager", "rootless", "criu"} {
		_ = f.MarkHidden(name) // fails only for a flag that does not exist
	}
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if !g.debug {
			logrus.SetOutput(io.Discard) // ttrpc's client logs what comes for calls that we have given up
		}
		if g.logFormat != "text" && g.logFormat != "json" {
			return sys.Invalidf("--log-format %s: want text or json", g.logFormat)
		}
		if systemd, _ := cmd.Flags().GetBool("systemd-cgroup"); systemd {
			return sys.Unsupportedf("--systemd-cgroup: there is no systemd in a guest; leave the flag away")
		}
		if m, _ := cmd.Flags().GetString("cgroup-manager"); m != "cgroupfs" {
			return sys.Unsupportedf("--cgroup-manager %s: only cgroupfs is supported", m)
		}
		return nil
	}
}

// logger is for what goes on in the background.
func (g *globals) logger() *slog.Logger {
	level := slog.LevelWarn
	if g.debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// deadline bounds ctx by --timeout, or by what is usual.
func (g *globals) deadline(ctx context.Context, usual time.Duration) (context.Context, context.CancelFunc) {
	if g.timeout > 0 {
		usual = g.timeout
	}
	return context.WithTimeoutCause(ctx, usual, fmt.Errorf("not done within %v: %w", usual, context.DeadlineExceeded))
}
