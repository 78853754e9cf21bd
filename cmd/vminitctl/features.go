package main

import (
	"github.com/spf13/cobra"

	"vminit/tasksvc"
)

func newFeaturesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "features",
		Short: "Print what is understood of a config.json, as OCI's features JSON",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return writeJSON(cmd.OutOrStdout(), tasksvc.Features(version))
		},
	}
}
