package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/emptypb"

	runtimeapi "vminit/api/services/runtime/v1"
	"vminit/internal/sys"
)

// newDaemonCommand is about the daemon that other verbs start when they need it.
func newDaemonCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Look at or end the daemon of this machine",
		Long: `The OCI verbs, without --address, are served by a daemon that belongs to the
caller's mount namespace (and to --root). The first verb that needs it starts it; it
ends when it has had no containers and no clients for 30 seconds (VMINIT_IDLE_TIMEOUT).

Its place, and that of microVMs, is in /run/vminit for root and in
$XDG_RUNTIME_DIR/vminit for other users. VMINIT_STATE_DIR names another directory
instead of both.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newDaemonStatusCommand(g), newDaemonStopCommand(g))
	return cmd
}

func newDaemonStatusCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Tell where the daemon is, and fail if there is none",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := g.deadline(cmd.Context(), callTimeout)
			defer cancel()
			p, err := g.localPlace()
			if err != nil {
				return fmt.Errorf("daemon status: %w", err)
			}
			guest, err := g.connectLocal(ctx, false)
			if err != nil {
				return fmt.Errorf("daemon status: %s: %w", p.dir, err)
			}
			defer guest.Close()
			info, err := guest.system.Info(ctx, &emptypb.Empty{})
			if err != nil {
				return fmt.Errorf("daemon status: %w", describe(err))
			}
			c, err := guest.task.Connect(ctx, &taskv3.ConnectRequest{})
			if err != nil {
				return fmt.Errorf("daemon status: %w", describe(err))
			}
			status := struct {
				Address string `json:"address"`
				Stream  string `json:"streamAddress"`
				Log     string `json:"log"`
				Pid     uint32 `json:"pid"`
				Version string `json:"version"`
			}{"unix://" + p.file("rpc.sock"), "unix://" + p.file("stream.sock"), p.file("daemon.log"), c.ShimPid, info.Version}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), status)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "address  %s\nstreams  %s\nlog      %s\npid      %d\nversion  %s\n",
				status.Address, status.Stream, status.Log, status.Pid, status.Version)
			return err
		},
	}
}

func newDaemonStopCommand(g *globals) *cobra.Command {
	var now bool
	cmd := &cobra.Command{
		Use:   "stop [--now]",
		Short: "End the daemon; with --now its containers, too",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := g.deadline(cmd.Context(), callTimeout)
			defer cancel()
			if err := g.stopDaemon(ctx, now); err != nil && !errors.Is(err, errNoDaemon) {
				return fmt.Errorf("daemon stop: %w", describe(err))
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&now, "now", false, "even if it has containers: they are killed")
	return cmd
}

func (g *globals) stopDaemon(ctx context.Context, now bool) error {
	p, err := g.localPlace()
	if err != nil {
		return err
	}
	guest, err := g.connectLocal(ctx, false)
	if err != nil {
		return err
	}
	defer guest.Close()
	r, err := guest.runtime.List(ctx, &runtimeapi.ListRequest{})
	if err != nil {
		return err
	}
	if r.Total > 0 && !now {
		return sys.Mark(sys.ErrState, fmt.Errorf("it has %d containers: delete them, or use --now", r.Total))
	}
	// Let go of our shared lock: the daemon removes its directory only with an
	// exclusive one.
	_ = guest.lock.Close()
	// Its end may overtake its answer.
	if _, err := guest.task.Shutdown(ctx, &taskv3.ShutdownRequest{Now: now}); err != nil && !errors.Is(err, ttrpc.ErrClosed) {
		return err
	}
	for {
		if _, err := os.Lstat(p.dir); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
