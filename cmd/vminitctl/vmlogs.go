package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"

	"vminit/internal/microvm"
)

func newVMLogsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:               "logs [NAME]",
		Short:             "Print what a VM has written to its console",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := theVM(args)
			if err == nil {
				err = printLog(cmd.Context(), in, cmd.OutOrStdout(), follow)
			}
			if err != nil {
				return fmt.Errorf("vm logs: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the VM ends")
	return cmd
}

// printLog copies the log. To follow, it is connected to the console first, so
// that nothing is missed; what was written meanwhile may come twice.
func printLog(ctx context.Context, in *microvm.Instance, w io.Writer, follow bool) error {
	var live net.Conn
	if follow {
		var err error
		if live, err = dialConsole(ctx, in); err != nil {
			return err
		}
		defer live.Close()
	}
	for _, path := range []string{in.LogPath() + ".1", in.LogPath()} {
		if err := printFile(w, path); err != nil {
			return err
		}
	}
	if !follow {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = live.Close() })
	defer stop()
	_, err := io.Copy(w, live)
	if ctx.Err() != nil {
		err = nil
	}
	return err
}

func printFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

func dialConsole(ctx context.Context, in *microvm.Instance) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", in.ConsolePath())
}
