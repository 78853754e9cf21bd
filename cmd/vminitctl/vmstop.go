package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vminit/internal/microvm"
)

func newVMStopCommand(g *globals) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "stop [NAME]",
		Short:             "Shut a VM down",
		Long:              "Shut a VM down in order, and end it without asking the guest if it has not powered off in time.",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := theVM(args)
			if err != nil {
				return fmt.Errorf("vm stop: %w", err)
			}
			ctx, cancel := g.deadline(cmd.Context(), shutdownTimeout+10*time.Second)
			defer cancel()
			if err := stopVM(ctx, in, force); err != nil {
				return fmt.Errorf("vm stop: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "end it at once, as if its power were cut")
	return cmd
}

// stopVM ends a machine through its owner, which cleans up after it; after one
// that had to be killed looking for it does.
func stopVM(ctx context.Context, in *microvm.Instance, force bool) error {
	if !force {
		if err := in.Signal(unix.SIGTERM); err != nil {
			return err
		}
		if err := in.AwaitEnd(ctx); err == nil {
			return nil
		}
	}
	if err := in.Signal(unix.SIGKILL); err != nil {
		return err
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := in.AwaitEnd(last); err != nil {
		return err
	}
	_, _ = findVM(in.Name)
	return nil
}
