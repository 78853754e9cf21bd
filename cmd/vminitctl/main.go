// Command vminitctl is what people and scripts type: it boots microVMs with
// vminitd as PID 1 and runs containers in them.
//
// A verb is in the file of its name (start, state, pause, resume and delete in
// lifecycle.go, those of vm in vm*.go, of daemon in daemon.go); root.go lists
// them all.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// version is set by the linker: -ldflags "-X main.version=...".
var version = "devel"

func main() {
	os.Exit(execute(context.Background(), os.Args[1:]))
}

// execute runs one command line and returns the exit status. Whatever failed is
// one line on stderr.
func execute(ctx context.Context, args []string) int {
	g := new(globals)
	root := newRootCommand(g)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if logErr := g.logFailure(err); logErr != nil {
		fmt.Fprintf(os.Stderr, "vminitctl: %v\n", logErr)
	}
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		if exit.err != nil {
			fmt.Fprintf(os.Stderr, "vminitctl: %v\n", exit.err)
		}
		return exit.code
	}
	fmt.Fprintf(os.Stderr, "vminitctl: %v\n", err)
	return 1
}

// exitError ends the program with a status of its own: a container's, without
// an error to print, or one that tells what kind of failure err was.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// Statuses of run, as docker has them: what comes from the container otherwise
// cannot be told from what comes from us.
const (
	exitFailure       = 125 // the container did not get to run
	exitNotExecutable = 126 // its program could not be executed
	exitNotFound      = 127 // its program does not exist
	exitInterrupted   = 130 // 128 + SIGINT
)
