package vmtest

import (
	"os"

	"vminit/internal/microvm"
)

// Start boots a guest for a program that is not a test, with kernel modules
// beside the usual ones. End it with Shutdown, and call Clean when all guests
// have ended.
func Start(edit func(*microvm.Config), modules ...string) (*Guest, error) {
	return boot(edit, modules...)
}

// Clean removes what the guests were made of.
func Clean() { os.RemoveAll(scratch()) }
