package main

import (
	"context"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// lastEvent is how long the event of an exit may come after the exit itself.
const lastEvent = time.Second

// watchOOM listens for the container running out of memory. The function it
// returns says whether it has, once it has ended: the guest tells of that before
// it tells of the exit. A guest without events is no reason not to run.
func (c *container) watchOOM(ctx context.Context) (happened func() bool) {
	stream, err := c.guest.events.Stream(ctx, &emptypb.Empty{})
	if err != nil {
		return func() bool { return false }
	}
	verdict := make(chan bool, 1)
	go func() { // ends with the exit, the connection or ctx
		oom := false
		defer func() { verdict <- oom }()
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			switch e.Topic {
			case "/tasks/oom":
				var m eventsapi.TaskOOM
				oom = oom || proto.Unmarshal(e.Event.GetValue(), &m) == nil && m.ContainerID == c.id
			case "/tasks/exit":
				var m eventsapi.TaskExit
				if proto.Unmarshal(e.Event.GetValue(), &m) == nil && m.ContainerID == c.id && m.ID == c.id {
					return
				}
			}
		}
	}()
	return func() bool {
		select {
		case oom := <-verdict:
			return oom
		case <-time.After(lastEvent):
			return false
		}
	}
}
