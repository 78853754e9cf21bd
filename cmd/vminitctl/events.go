package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	_ "github.com/containerd/containerd/api/events" // registers the types of events
	"github.com/containerd/containerd/api/types"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/emptypb"
)

func newEventsCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "events",
		Short: "Print the events of a daemon as they happen",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, signals := watchSignals(cmd.Context())
			defer signals.stop()
			dial, cancel := g.deadline(ctx, 30*time.Second)
			guest, err := g.connect(dial)
			cancel()
			if err != nil {
				return fmt.Errorf("events: %w", err)
			}
			defer guest.Close()
			stream, err := guest.events.Stream(ctx, &emptypb.Empty{})
			for err == nil {
				var e *types.Envelope
				if e, err = stream.Recv(); err == nil {
					err = printEvent(cmd.OutOrStdout(), e, g.json)
				}
			}
			if errors.Is(err, io.EOF) || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("events: %w", describe(err))
		},
	}
}

// printEvent prints one line; an event of a type nobody knows without its
// contents.
func printEvent(w io.Writer, e *types.Envelope, asJSON bool) error {
	body := json.RawMessage("null")
	if e.Event != nil {
		if m, err := e.Event.UnmarshalNew(); err == nil {
			if b, err := protojson.Marshal(m); err == nil {
				body = b
			}
		}
	}
	at := e.Timestamp.AsTime().Format(time.RFC3339Nano)
	if asJSON {
		return json.NewEncoder(w).Encode(map[string]any{
			"timestamp": at, "namespace": e.Namespace, "topic": e.Topic, "event": body,
		})
	}
	_, err := fmt.Fprintf(w, "%s %s %s %s\n", at, e.Namespace, e.Topic, body)
	return err
}
