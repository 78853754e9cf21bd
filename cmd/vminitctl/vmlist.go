package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"vminit/internal/microvm"
)

func newVMListCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the VMs that run",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := microvm.StateRoot()
			if err != nil {
				return err
			}
			all, err := microvm.List(root)
			if err != nil {
				return fmt.Errorf("vm list: %w", err)
			}
			out := cmd.OutOrStdout()
			if g.json {
				metas := make([]microvm.Meta, 0, len(all))
				for _, in := range all {
					metas = append(metas, in.Meta)
				}
				return json.NewEncoder(out).Encode(metas)
			}
			w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "NAME\tSTATE\tPID\tCPUS\tMEMORY\tACCEL\tUP\tADDRESS")
			for _, in := range all {
				state := "booting"
				if in.Ready {
					state = "running"
				}
				fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%dM\t%s\t%v\tvm://%s\n", in.Name, state, in.PID, in.CPUs, in.MemoryMiB,
					in.Accel.Name, time.Since(in.Started).Round(time.Second), in.Name)
			}
			return w.Flush()
		},
	}
}
