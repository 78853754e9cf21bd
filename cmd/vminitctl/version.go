package main

import (
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
)

func newVersionCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			if g.json {
				return json.NewEncoder(out).Encode(map[string]string{"version": version, "go": runtime.Version(), "arch": runtime.GOARCH})
			}
			_, err := fmt.Fprintf(out, "vminitctl %s (%s, %s)\n", version, runtime.Version(), runtime.GOARCH)
			return err
		},
	}
}
