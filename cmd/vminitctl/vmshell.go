package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// debugShellPort is where a guest booted with --debug-shell serves it.
const debugShellPort = 1027

func newVMShellCommand() *cobra.Command {
	var port uint32
	cmd := &cobra.Command{
		Use:   "shell [NAME]",
		Short: "Open a shell in a VM's guest, outside its containers",
		Long: `Open a shell of the guest's root, beside the daemon and outside all containers.
The VM must have been booted with --debug-shell (or the daemon's flag
-debug-shell PORT), and its image must hold a shell: vminitctl initramfs
--add /bin/busybox:/bin/sh. Ctrl-] disconnects, which ends the shell.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := theVM(args)
			if err != nil {
				return fmt.Errorf("vm shell: %w", err)
			}
			conn, err := in.Dial(cmd.Context(), port)
			if err != nil {
				return fmt.Errorf("vm shell: %w (was the VM booted with --debug-shell?)", err)
			}
			defer conn.Close()
			if err := attach(conn, in.Name); err != nil {
				return fmt.Errorf("vm shell: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().Uint32Var(&port, "port", debugShellPort, "the port that the guest serves the shell on")
	return cmd
}
