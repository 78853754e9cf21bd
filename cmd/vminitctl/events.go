package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	eventtypes "github.com/containerd/containerd/api/events" // also registers them
	"github.com/containerd/containerd/api/types"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/emptypb"

	"vminit/internal/sys"
)

func newEventsCommand(g *globals) *cobra.Command {
	var once bool
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "events | events [--stats] [--interval D] ID",
		Short: "Print a daemon's events, or a container's usage, as they come",
		Long: `Without an ID, print the events of a daemon as they happen.

With an ID, print what the container uses every --interval, and when it runs out of
memory, as runc does: one JSON object a line, until it has ended. With --stats print
its usage once.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, signals := watchSignals(cmd.Context())
			defer signals.stop()
			cmd.SetContext(ctx)
			if len(args) == 0 {
				if once {
					return sys.Invalidf("events: --stats needs a container's id")
				}
				return g.allEvents(cmd)
			}
			id := args[0]
			if once {
				return g.call(cmd, id, func(ctx context.Context, guest *guest) error { return printUsage(ctx, cmd.OutOrStdout(), guest, id) })
			}
			if interval <= 0 {
				return sys.Invalidf("events: --interval %v is not positive", interval)
			}
			dial, cancel := g.deadline(ctx, callTimeout)
			defer cancel()
			err := g.withRuntime(dial, ctx, id, false, func(ctx context.Context, guest *guest) error {
				return watchContainer(ctx, cmd.OutOrStdout(), guest, id, interval)
			})
			if ctx.Err() != nil {
				return nil
			}
			return verbError(cmd, id, err)
		},
	}
	cmd.Flags().BoolVar(&once, "stats", false, "print the container's usage once")
	cmd.Flags().DurationVar(&interval, "interval", 5*time.Second, "how often to print the container's usage")
	return cmd
}

// allEvents prints the events of a daemon.
func (g *globals) allEvents(cmd *cobra.Command) error {
	ctx := cmd.Context()
	dial, cancel := g.deadline(ctx, 30*time.Second)
	guest, err := g.runtime(dial, false)
	cancel()
	if err != nil {
		return fmt.Errorf("events: %w", err)
	}
	defer guest.Close()
	var stream interface {
		Recv() (*types.Envelope, error)
	}
	if g.address == "" { // what we look at, others may still wait for
		stream, err = guest.debug.Events(ctx, &emptypb.Empty{})
	} else {
		stream, err = guest.events.Stream(ctx, &emptypb.Empty{})
	}
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
}

// runcEvent is a line of runc's events.
type runcEvent struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

// printUsage prints what the container uses now.
func printUsage(ctx context.Context, w io.Writer, guest *guest, id string) error {
	m, err := guest.metrics(ctx, id)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(runcEvent{"stats", id, asRunc(m)})
}

// watchContainer prints usage and trouble until the container has ended.
func watchContainer(ctx context.Context, w io.Writer, guest *guest, id string, interval time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := guest.debug.Events(ctx, &emptypb.Empty{})
	if err != nil {
		return err
	}
	c, err := guest.container(ctx, id, false) // after it was subscribed to: its end is not missed
	if err != nil {
		return err
	}
	if c.Status == "stopped" {
		return sys.Mark(sys.ErrState, errors.New("the container has ended"))
	}
	news := make(chan trouble)
	go func() {
		defer close(news)
		for {
			env, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case news <- troubleOf(env, id):
			case <-ctx.Done():
				return
			}
		}
	}()
	return reportContainer(ctx, w, guest, id, interval, news)
}

// trouble is what an event says about a container.
type trouble struct{ oom, ended bool }

func troubleOf(env *types.Envelope, id string) (t trouble) {
	m, err := env.GetEvent().UnmarshalNew()
	if err != nil {
		return t
	}
	switch e := m.(type) {
	case *eventtypes.TaskOOM:
		t.oom = e.ContainerID == id
	case *eventtypes.TaskExit:
		t.ended = e.ContainerID == id && e.ID == id
	case *eventtypes.TaskDelete:
		t.ended = e.ContainerID == id && e.ID == id
	}
	return t
}

// reportContainer prints usage at every interval and what news tells, until that
// is the container's end.
func reportContainer(ctx context.Context, w io.Writer, guest *guest, id string, interval time.Duration, news <-chan trouble) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case t, ok := <-news:
			if t.oom {
				if err := json.NewEncoder(w).Encode(runcEvent{Type: "oom", ID: id}); err != nil {
					return err
				}
			}
			if t.ended || !ok {
				return nil
			}
		case <-tick.C:
			if err := printUsage(ctx, w, guest, id); err != nil {
				if isNotFound(err) {
					return nil
				}
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
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
