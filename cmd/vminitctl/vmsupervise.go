package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vminit/internal/microvm"
)

// newVMSuperviseCommand is the other half of vm boot: the process that owns the
// machine. Its config comes on stdin, its report goes to descriptor 3.
func newVMSuperviseCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "supervise",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			tell := os.NewFile(3, "report")
			unix.CloseOnExec(3)
			var c microvm.Config
			err := json.NewDecoder(io.LimitReader(os.Stdin, maxReport)).Decode(&c)
			if err == nil {
				err = supervise(cmd.Context(), c, tell)
			}
			if err != nil {
				_ = json.NewEncoder(tell).Encode(report{Error: err.Error()})
			}
			return err
		},
	}
}

// supervise boots a machine, reports, and stays until it has ended. SIGTERM
// shuts it down in order.
func supervise(ctx context.Context, c microvm.Config, tell io.WriteCloser) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	vm, err := microvm.Boot(ctx, c)
	if err != nil {
		return err
	}
	meta := vm.Instance().Meta
	if err := json.NewEncoder(tell).Encode(report{Meta: &meta}); err != nil {
		vm.Kill() // whoever wanted it has gone
		return err
	}
	_ = tell.Close()
	select {
	case <-vm.Done():
		return vm.Wait()
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	return vm.Shutdown(end)
}
