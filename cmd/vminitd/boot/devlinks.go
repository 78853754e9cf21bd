package boot

import (
	"errors"
	"fmt"
	"os"
)

// DevLinks makes the symbolic links that userland expects in /dev and that
// devtmpfs does not create. What exists is left alone (/dev/ptmx usually is a
// device node, which finds the devpts instance mounted beside it).
func DevLinks() error {
	links := []struct{ link, target string }{
		{"/dev/fd", "/proc/self/fd"},
		{"/dev/stdin", "/proc/self/fd/0"},
		{"/dev/stdout", "/proc/self/fd/1"},
		{"/dev/stderr", "/proc/self/fd/2"},
		{"/dev/ptmx", "pts/ptmx"},
	}
	var errs []error
	for _, l := range links {
		if err := os.Symlink(l.target, l.link); err != nil && !errors.Is(err, os.ErrExist) {
			errs = append(errs, fmt.Errorf("link %s: %w", l.link, err))
		}
	}
	return errors.Join(errs...)
}
