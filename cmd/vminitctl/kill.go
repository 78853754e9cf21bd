package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

func newKillCommand(g *globals) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "kill [--all] ID [SIGNAL]",
		Short: "Send a signal to a container",
		Long: `Send a signal, TERM if none is given, to the first process of a container, or to
all of its processes. It is named with or without SIG, or a number. A container
that has stopped takes none: that is an error.`,
		Example: `  vminitctl kill c1
  vminitctl kill c1 KILL
  vminitctl kill --all c1 9`,
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, name := args[0], "TERM"
			if len(args) == 2 {
				name = args[1]
			}
			sig, err := parseSignal(name)
			if err != nil {
				return verbError(cmd, id, err)
			}
			return g.call(cmd, id, func(ctx context.Context, guest *guest) error {
				if all { // signals to nobody do not fail by themselves
					c, err := guest.container(ctx, id, false)
					if err != nil {
						return err
					}
					if c.Status == "stopped" {
						p, err := guest.task.Pids(ctx, &taskv3.PidsRequest{ID: id})
						if err == nil && len(p.Processes) == 0 {
							err = sys.Mark(sys.ErrState, fmt.Errorf("container %s has ended", id))
						}
						if err != nil {
							return err
						}
					}
				}
				_, err := guest.task.Kill(ctx, &taskv3.KillRequest{ID: id, Signal: uint32(sig), All: all})
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "signal all processes of the container")
	return cmd
}

// Real-time signals as programs that use the C library see them, signal(7).
const (
	rtMin = 34
	rtMax = 64
)

// parseSignal reads a signal's name, with or without SIG and in any case, or its
// number.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > rtMax {
			return 0, sys.Invalidf("signal %d is not between 1 and %d", n, rtMax)
		}
		return unix.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	for prefix, base := range map[string]int{"RTMIN": rtMin, "RTMAX": rtMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		n := 0
		if rest != "" {
			var err error
			if n, err = strconv.Atoi(rest); err != nil || rest[0] != '+' && rest[0] != '-' {
				break
			}
		}
		if sig := base + n; sig >= rtMin && sig <= rtMax {
			return unix.Signal(sig), nil
		}
	}
	return 0, sys.Invalidf("%q is not a signal", s)
}
