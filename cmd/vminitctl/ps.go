package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/spf13/cobra"

	"vminit/internal/sys"
)

func newPsCommand(g *globals) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "ps [--format table|json] ID [PS-OPTION...]",
		Short: "List the processes of a container",
		Long: `List the processes of a container. The table is what ps(1) of this machine prints
with the options (default: -ef) about them; of a container in a VM, and without a
ps(1), it has their ids only. JSON is an array of ids.`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if g.json {
				format = "json"
			}
			if format != "table" && format != "json" {
				return sys.Invalidf("ps: --format %s: want table or json", format)
			}
			return g.call(cmd, args[0], func(ctx context.Context, guest *guest) error {
				r, err := guest.task.Pids(ctx, &taskv3.PidsRequest{ID: args[0]})
				if err != nil {
					return err
				}
				pids := []int{}
				for _, p := range r.Processes {
					pids = append(pids, int(p.Pid))
				}
				out := cmd.OutOrStdout()
				switch {
				case format == "json":
					return writeJSON(out, pids)
				case g.address == "":
					if err := psTable(ctx, out, pids, args[1:]); !errors.Is(err, exec.ErrNotFound) {
						return err
					}
				}
				fmt.Fprintln(out, "PID")
				for _, pid := range pids {
					fmt.Fprintln(out, pid)
				}
				return nil
			})
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// psTable prints the lines of ps(1) that are about pids.
func psTable(ctx context.Context, w io.Writer, pids []int, options []string) error {
	if len(options) == 0 {
		options = []string{"-ef"}
	}
	cmd := exec.CommandContext(ctx, "ps", options...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("ps %s: %w: %s", strings.Join(options, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	head, rest, _ := strings.Cut(string(out), "\n")
	column := slices.Index(strings.Fields(head), "PID")
	if column < 0 {
		return sys.Invalidf("ps %s prints no column PID", strings.Join(options, " "))
	}
	fmt.Fprintln(w, head)
	for line := range strings.Lines(rest) {
		f := strings.Fields(line)
		if len(f) <= column {
			continue
		}
		if pid, err := strconv.Atoi(f[column]); err == nil && slices.Contains(pids, pid) {
			fmt.Fprint(w, line)
		}
	}
	return nil
}
