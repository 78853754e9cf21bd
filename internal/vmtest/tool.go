package vmtest

import (
	"os"

	"vminit/internal/microvm"
)

// Start boots a guest for a program that is not a test; End it with Shutdown,
// and call Clean when all guests have ended.
func Start(edit func(*microvm.Config)) (*Guest, error) { return boot(edit) }

// Clean removes what the guests were made of.
func Clean() { os.RemoveAll(scratch()) }
