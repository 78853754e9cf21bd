package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/emptypb"

	"vminit/internal/initramfs"
	"vminit/internal/microvm"
)

// hostInfo is what this host has for VMs.
type hostInfo struct {
	Accel  microvm.Accel `json:"accel"`
	Kernel string        `json:"kernel,omitempty"`
	Daemon string        `json:"vminitd,omitempty"`
	State  string        `json:"stateDirectory,omitempty"`
	Cache  string        `json:"cacheDirectory,omitempty"`

	Problems []string `json:"problems,omitempty"`
}

// daemonInfo is what a daemon says about itself.
type daemonInfo struct {
	Address string `json:"address"`
	Version string `json:"version"`
	Kernel  string `json:"kernel"`
}

func newInfoCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "info",
		Short: "Tell what this host has for VMs, or with --address what a daemon is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var v any
			var text string
			if g.address == "" {
				h := lookAround()
				v, text = h, h.text()
			} else {
				d, err := askDaemon(cmd, g)
				if err != nil {
					return fmt.Errorf("info: %w", err)
				}
				v, text = d, fmt.Sprintf("daemon   %s\nversion  %s\nkernel   %s\n", d.Address, d.Version, d.Kernel)
			}
			if g.json {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(v)
			}
			_, err := fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
}

func askDaemon(cmd *cobra.Command, g *globals) (daemonInfo, error) {
	ctx, cancel := g.deadline(cmd.Context(), 30*time.Second)
	defer cancel()
	guest, err := g.connect(ctx)
	if err != nil {
		return daemonInfo{}, err
	}
	defer guest.Close()
	r, err := guest.system.Info(ctx, &emptypb.Empty{})
	if err != nil {
		return daemonInfo{}, describe(err)
	}
	return daemonInfo{g.address, r.Version, r.KernelVersion}, nil
}

// lookAround collects what is there, and what is missing.
func lookAround() hostInfo {
	var h hostInfo
	note := func(err error) {
		if err != nil {
			h.Problems = append(h.Problems, err.Error())
		}
	}
	var err error
	h.Accel, err = microvm.ChooseAccel("auto")
	note(err)
	h.Kernel, _, err = initramfs.FindKernel()
	note(err)
	h.Daemon, err = findDaemon()
	note(err)
	h.State, err = microvm.StateRoot()
	note(err)
	store, err := openCache()
	note(err)
	h.Cache = store.dir
	note(microvm.CheckQEMU())
	return h
}

func (h hostInfo) text() string {
	s := fmt.Sprintf("accelerator  %s (%s)\nkernel       %s\nvminitd      %s\nstate        %s\ncache        %s\n",
		h.Accel.Name, h.Accel.Reason, h.Kernel, h.Daemon, h.State, h.Cache)
	for _, p := range h.Problems {
		s += "problem      " + p + "\n"
	}
	return s
}
