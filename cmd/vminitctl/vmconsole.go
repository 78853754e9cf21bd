package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vminit/internal/microvm"
)

// detachKey ends a console session: Ctrl-], as telnet has it.
const detachKey = 0x1d

func newVMConsoleCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "console [NAME]",
		Short:             "Connect to a VM's console",
		Long:              "Connect this terminal to a VM's serial console. Ctrl-] disconnects.",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			in, err := theVM(args)
			if err == nil {
				err = attachConsole(cmd.Context(), in)
			}
			if err != nil {
				return fmt.Errorf("vm console: %w", err)
			}
			return nil
		},
	}
}

// errDetached ends copying from the terminal.
var errDetached = errors.New("detached")

// attachConsole connects stdin and stdout until the VM ends or the key is hit.
func attachConsole(ctx context.Context, in *microvm.Instance) error {
	conn, err := dialConsole(ctx, in)
	if err != nil {
		return err
	}
	defer conn.Close()
	return attach(conn, in.Name)
}

// attach connects stdin and stdout with conn until that ends or the key is hit.
func attach(conn net.Conn, name string) error {
	if term.IsTerminal(int(os.Stdin.Fd())) {
		fmt.Fprintf(os.Stderr, "connected to %s; Ctrl-] disconnects\r\n", name)
		t := &terminal{int(os.Stdin.Fd())}
		restore, err := t.raw()
		if err != nil {
			return err
		}
		defer restore()
	}
	go func() { // ends with us: reading stdin cannot be interrupted
		if err := copyUntilKey(conn, os.Stdin, detachKey); errors.Is(err, errDetached) {
			_ = conn.Close()
		}
	}()
	_, err := io.Copy(os.Stdout, conn)
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// copyUntilKey copies what comes before a key.
func copyUntilKey(w io.Writer, r io.Reader, key byte) error {
	buf := make([]byte, 1024)
	for {
		n, err := r.Read(buf)
		b, _, hit := bytes.Cut(buf[:n], []byte{key})
		if len(b) > 0 {
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
		if hit {
			return errDetached
		}
		if err != nil {
			return err
		}
	}
}
