package main

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	runtimeapi "vminit/api/services/runtime/v1"
	"vminit/internal/sys"
)

func newListCommand(g *globals) *cobra.Command {
	var quiet bool
	var format string
	cmd := &cobra.Command{
		Use:     "list [-q] [--format table|json]",
		Aliases: []string{"ls"},
		Short:   "List the containers",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if g.json {
				format = "json"
			}
			if format != "table" && format != "json" {
				return sys.Invalidf("list: --format %s: want table or json", format)
			}
			states, err := g.states(cmd)
			if err != nil {
				return fmt.Errorf("list: %w", describe(err))
			}
			out := cmd.OutOrStdout()
			switch {
			case quiet:
				for _, s := range states {
					fmt.Fprintln(out, s.ID)
				}
				return nil
			case format == "json":
				return writeJSON(out, states)
			}
			w := tabwriter.NewWriter(out, 12, 1, 3, ' ', 0)
			fmt.Fprintln(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER")
			for _, s := range states {
				fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
			}
			return w.Flush()
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the ids only")
	cmd.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// states asks for all containers; none if no daemon runs.
func (g *globals) states(cmd *cobra.Command) ([]ociState, error) {
	ctx, cancel := g.deadline(cmd.Context(), callTimeout)
	defer cancel()
	states := []ociState{}
	guest, err := g.runtime(ctx, false)
	if errors.Is(err, errNoDaemon) {
		return states, nil
	}
	if err != nil {
		return nil, err
	}
	defer guest.Close()
	r, err := guest.runtime.List(withNamespace(ctx, g.namespace), &runtimeapi.ListRequest{})
	if err != nil {
		return nil, err
	}
	for _, c := range r.Containers {
		s := stateOf(c)
		s.Owner = owner(s.Bundle)
		states = append(states, s)
	}
	return states, nil
}

// owner is the name of the bundle's owner, #UID if that has none, "" if the
// bundle is not on this machine.
func owner(bundle string) string {
	var st unix.Stat_t
	if err := unix.Stat(bundle, &st); err != nil {
		return ""
	}
	id := strconv.Itoa(int(st.Uid))
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "#" + id
}
