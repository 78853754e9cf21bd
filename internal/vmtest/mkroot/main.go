// Command mkroot makes a small root file system of Debian's busybox-static in a
// directory, for examples: mkroot DIR.
package main

import (
	"fmt"
	"os"

	"vminit/internal/vmtest/testroot"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: mkroot DIR")
		os.Exit(2)
	}
	if err := testroot.Build(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "mkroot:", err)
		os.Exit(1)
	}
}
