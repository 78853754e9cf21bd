package main

import (
	"github.com/spf13/cobra"

	"vminit/internal/microvm"
	"vminit/internal/sys"
)

func newVMCommand(g *globals) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vm",
		Short: "Boot, list and stop microVMs",
		Long: `Boot, list and stop microVMs. They are known by name in one directory:
/run/vminit/vms for root, $XDG_RUNTIME_DIR/vminit/vms for other users, or vms in
VMINIT_STATE_DIR if that is set.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newVMBootCommand(g),
		newVMSuperviseCommand(),
		newVMListCommand(g),
		newVMStopCommand(g),
		newVMConsoleCommand(),
		newVMShellCommand(),
		newVMLogsCommand(),
		newVMTimelineCommand(g),
	)
	return cmd
}

// theVM returns the machine that args name, or the only one that runs.
func theVM(args []string) (*microvm.Instance, error) {
	if len(args) > 0 {
		return findVM(args[0])
	}
	root, err := microvm.StateRoot()
	if err != nil {
		return nil, err
	}
	all, err := microvm.List(root)
	switch {
	case err != nil:
		return nil, err
	case len(all) == 1:
		return all[0], nil
	case len(all) == 0:
		return nil, sys.Invalidf("no VM runs (vminitctl vm boot starts one)")
	}
	return nil, sys.Invalidf("%d VMs run: say which (vminitctl vm list)", len(all))
}

// completeVM completes names of machines in the shell.
func completeVM(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	root, err := microvm.StateRoot()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	all, err := microvm.List(root)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, in := range all {
		names = append(names, in.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
