package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

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
}

// newRootCommand returns the whole tree of commands.
func newRootCommand() *cobra.Command {
	g := new(globals)
	root := &cobra.Command{
		Use:   "vminitctl",
		Short: "Run containers in microVMs",
		Long: `vminitctl boots microVMs whose PID 1 is vminitd and runs containers in them.

  vminitctl run --rootfs DIR -- CMD      a container in a microVM of its own
  vminitctl vm boot --name v1            a microVM that stays
  vminitctl run --vm v1 --rootfs DIR -- CMD`,
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
	addIgnoredFlags(root)

	root.AddCommand(
		newRunCommand(g),
		newVMCommand(g),
		newInitramfsCommand(g),
		newEventsCommand(g),
		newCheckCommand(g),
		newInfoCommand(g),
		newVersionCommand(g),
	)
	return root
}

// addIgnoredFlags takes the global flags of runc and crun that mean nothing
// here, so that tools written for those work.
func addIgnoredFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.String("root", "", "ignored (state lives in the daemon)")
	f.String("log", "", "ignored (errors go to stderr)")
	f.String("log-format", "text", "ignored")
	f.Bool("systemd-cgroup", false, "must be false: there is no systemd")
	f.String("cgroup-manager", "cgroupfs", "must be cgroupfs")
	for _, name := range []string{"root", "log", "log-format", "systemd-cgroup", "cgroup-manager"} {
		_ = f.MarkHidden(name) // fails only for a flag that does not exist
	}
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
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
