package cgroup2

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// Apply does the writes in order. It stops at the first that fails; those
// before it stay in effect. The error names file, value and errno, and the
// controller if that is what is missing ([sys.ErrUnsupported]); a value that
// the kernel refuses is [sys.ErrInvalid].
//
// A write that is refused with EINVAL is tried again after the others, as some
// values are valid only together: lowering cpu.max below cpu.max.burst needs
// the burst lowered first, raising both the quota raised first.
func (c *Cgroup) Apply(writes []Write) error {
	for _, w := range writes {
		if err := c.checkAbove(w); err != nil {
			return err
		}
	}
	for len(writes) > 0 {
		var refused []Write
		var first error
		for _, w := range writes {
			switch err := c.apply(w); {
			case errors.Is(err, unix.EINVAL):
				refused = append(refused, w)
				if first == nil {
					first = err
				}
			case err != nil:
				return err
			}
		}
		if len(refused) == len(writes) {
			return first
		}
		writes = refused
	}
	return nil
}

// checkAbove compares the value of a write with the number it must exceed.
func (c *Cgroup) checkAbove(w Write) error {
	if w.Above == "" || w.Value == "max" {
		return nil
	}
	data, err := c.dir.read(w.Above)
	if err != nil {
		return c.wrap("read "+w.Above+" of", err)
	}
	now, err := parseValue(data)
	if err != nil {
		return c.wrap("parse "+w.Above+" of", err)
	}
	want, err := parseUint([]byte(w.Value))
	if err != nil {
		return sys.Invalidf("%s: %w", w.File, err)
	}
	if want <= now {
		return sys.Invalidf("refusing to set %s of cgroup %s to %d: %s is at %d, and checkBeforeUpdate is set",
			w.File, c.path, want, w.Above, now)
	}
	return nil
}

func (c *Cgroup) apply(w Write) error {
	err := c.dir.write(w.File, w.Value)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT) && w.Else != nil:
		return c.apply(*w.Else)
	case errors.Is(err, unix.ENOENT):
		if err = c.whyAbsent(w); err == nil {
			return nil
		}
	case errors.Is(err, unix.ENODEV) && !c.gone():
		// A value that begins with a device that does not exist.
		err = sys.Mark(sys.ErrInvalid, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		err = sys.Mark(sys.ErrInvalid, err)
	}
	return c.wrap(fmt.Sprintf("write %.100q to %s of", w.Value, w.File), err)
}

// whyAbsent explains why the file of w is not there: the cgroup is gone, its
// controller is not enabled, or the kernel lacks the file. For an optional
// write only the first is an error.
func (c *Cgroup) whyAbsent(w Write) error {
	data, err := c.dir.read("cgroup.controllers")
	if err != nil {
		return unix.ENODEV
	}
	if w.Optional {
		return nil
	}
	have := strings.Fields(string(data))
	controller, _, _ := strings.Cut(w.File, ".")
	if controller == "cgroup" || slices.Contains(have, controller) {
		return sys.Unsupportedf("%w: the controller %s is enabled, but this kernel has no such file", unix.ENOENT, controller)
	}
	return sys.Unsupportedf("%w: the controller %s is not available (there are: %s); is it in use by a cgroup v1 mount or disabled on the kernel command line?",
		unix.ENOENT, controller, strings.Join(have, " "))
}

// gone reports whether the cgroup has been removed.
func (c *Cgroup) gone() bool {
	_, err := c.dir.read("cgroup.controllers")
	return absent(err)
}
