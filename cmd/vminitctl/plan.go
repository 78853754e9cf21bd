package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"vminit/tasksvc"
)

func newPlanCommand(g *globals) *cobra.Command {
	var bundle string
	cmd := &cobra.Command{
		Use:   "plan [--json] [BUNDLE]",
		Short: "Print the syscalls a bundle's container would be made of",
		Long: `Print the syscalls that make a bundle's container, decoded as strace does, and what
each of them is for. Blocks that depend on an outcome are indented. It needs no
privileges and no daemon, and changes nothing.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				bundle = args[0]
			}
			dir, err := filepath.Abs(bundle)
			if err != nil {
				return fmt.Errorf("plan: %w", err)
			}
			text, err := tasksvc.Plan(dir)
			if err != nil {
				return fmt.Errorf("plan %s: %w", bundle, err)
			}
			if g.json {
				return writeJSON(cmd.OutOrStdout(), planLines(text))
			}
			_, err = io.WriteString(cmd.OutOrStdout(), text)
			return err
		},
	}
	cmd.Flags().StringVarP(&bundle, "bundle", "b", ".", "the bundle's directory")
	return cmd
}

// planLine is one line of a plan.
type planLine struct {
	Step  string `json:"step"`           // what it is for
	Depth int    `json:"depth"`          // of blocks it is in
	Call  string `json:"call,omitempty"` // name of the syscall, if it is one
	Text  string `json:"text"`
}

// planLines takes a printed plan apart: "# step" starts a step, two spaces are a
// level, and what has a parenthesis right behind a name is a call.
func planLines(text string) []planLine {
	lines := []planLine{}
	step := "make the process"
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if s, ok := strings.CutPrefix(line, "# "); ok {
			step = s
			continue
		}
		rest := strings.TrimLeft(line, " ")
		l := planLine{Step: step, Depth: (len(line) - len(rest)) / 2, Text: rest}
		if name, _, ok := strings.Cut(rest, "("); ok && !strings.ContainsAny(name, " *$:") {
			l.Call = name
		}
		lines = append(lines, l)
	}
	return lines
}
