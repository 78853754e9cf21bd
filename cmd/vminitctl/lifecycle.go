package main

import (
	"context"
	"errors"
	"fmt"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/spf13/cobra"

	"vminit/internal/sys"
)

// The verbs that take a container through its life and have no flags of note.

func newStartCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:               "start ID",
		Short:             "Run the program of a container that was created",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.call(cmd, args[0], func(ctx context.Context, guest *guest) error {
				_, err := guest.task.Start(ctx, &taskv3.StartRequest{ID: args[0]})
				return err
			})
		},
	}
}

func newStateCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:               "state ID",
		Short:             "Print the state of a container as JSON",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.call(cmd, args[0], func(ctx context.Context, guest *guest) error {
				c, err := guest.container(ctx, args[0], false)
				if err != nil {
					return err
				}
				return writeJSON(cmd.OutOrStdout(), stateOf(c))
			})
		},
	}
}

func newPauseCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:               "pause ID",
		Short:             "Freeze all processes of a container",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.call(cmd, args[0], func(ctx context.Context, guest *guest) error {
				_, err := guest.task.Pause(ctx, &taskv3.PauseRequest{ID: args[0]})
				return err
			})
		},
	}
}

func newResumeCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:               "resume ID",
		Short:             "Let a paused container go on",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.call(cmd, args[0], func(ctx context.Context, guest *guest) error {
				_, err := guest.task.Resume(ctx, &taskv3.ResumeRequest{ID: args[0]})
				return err
			})
		},
	}
}

func newDeleteCommand(g *globals) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "delete [--force] ID",
		Short: "Remove a container that has stopped",
		Long: `Remove a container that has stopped, and run its poststop hooks. One that is
created, running or paused is refused; with --force it is killed first, and it is
no error if there is no such container.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			id := args[0]
			err := g.call(cmd, id, func(ctx context.Context, guest *guest) error {
				c, err := guest.container(ctx, id, false)
				switch {
				case err != nil:
					return err
				case c.Status == "stopped":
					_, err = guest.task.Delete(ctx, &taskv3.DeleteRequest{ID: id})
					return err
				case force:
					return guest.forceDelete(ctx, id)
				}
				return sys.Mark(sys.ErrState, fmt.Errorf("the container is %s, not stopped: kill it first, or use --force", c.Status))
			})
			if force && errors.Is(err, sys.ErrNotFound) {
				return nil
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "kill it first if it lives")
	return cmd
}
