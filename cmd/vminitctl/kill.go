package main

import (
	"context"
	"fmt"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/spf13/cobra"

	"vminit/internal/sys"
)

func newKillCommand(g *globals) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "kill [--all] ID [SIGNAL]",
		Short: "Send a signal to a container",
		Long: `Send a signal, TERM if none is given, to the first process of a container, or to
all of its processes. It is named with or without SIG, or a number. A container
that has stopped takes none: that is an error.`,
		Example: `  vminitctl kill c1
  vminitctl kill c1 KILL
  vminitctl kill --all c1 9`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, name := args[0], "TERM"
			if len(args) == 2 {
				name = args[1]
			}
			sig, err := sys.ParseSignal(name)
			if err != nil {
				return verbError(cmd, id, err)
			}
			return g.call(cmd, id, func(ctx context.Context, guest *guest) error {
				if all { // signals to nobody do not fail by themselves
					c, err := guest.container(ctx, id, false)
					if err != nil {
						return err
					}
					if c.Status == "stopped" {
						p, err := guest.task.Pids(ctx, &taskv3.PidsRequest{ID: id})
						if err == nil && len(p.Processes) == 0 {
							err = sys.Mark(sys.ErrState, fmt.Errorf("container %s has ended", id))
						}
						if err != nil {
							return err
						}
					}
				}
				_, err := guest.task.Kill(ctx, &taskv3.KillRequest{ID: id, Signal: uint32(sig), All: all})
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "signal all processes of the container")
	return cmd
}
