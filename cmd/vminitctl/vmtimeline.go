package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

func newVMTimelineCommand(g *globals) *cobra.Command {
	var svg string
	cmd := &cobra.Command{
		Use:               "timeline [NAME]",
		Short:             "Print what took how long in a VM, from power-on",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := theVM(args)
			if err != nil {
				return fmt.Errorf("vm timeline: %w", err)
			}
			ctx, cancel := g.deadline(cmd.Context(), 30*time.Second)
			defer cancel()
			guest, err := otherGuest(ctx, in)
			if err != nil {
				return fmt.Errorf("vm timeline: %w", err)
			}
			defer guest.Close()
			t := new(timeline)
			t.machine(in.Marks)
			asked := time.Now()
			r, err := guest.debug.Timeline(ctx, &emptypb.Empty{})
			switch {
			case err == nil:
				t.guest(r, asked, time.Now(), time.Time{})
			case status.Code(err) != codes.Unimplemented:
				return fmt.Errorf("vm timeline: %w", describe(err))
			}
			if svg == "" {
				return t.print(cmd.OutOrStdout(), g.json)
			}
			if err := drawTo(svg, t); err != nil {
				return fmt.Errorf("vm timeline: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&svg, "svg", "", "draw it into this file instead of printing it")
	return cmd
}

func drawTo(path string, t *timeline) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(t.draw(f), f.Close())
}
