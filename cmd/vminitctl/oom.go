package main

import (
	"context"
	"sync/atomic"

	eventsapi "github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// watchOOM listens for the container running out of memory; the function it
// returns says whether it has. A guest without events is no reason not to run.
func (c *container) watchOOM(ctx context.Context) (happened func() bool) {
	var oom atomic.Bool
	stream, err := c.guest.events.Stream(ctx, &emptypb.Empty{})
	if err != nil {
		return oom.Load
	}
	go func() { // ends with the connection or ctx
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			if e.Topic != "/tasks/oom" {
				continue
			}
			var m eventsapi.TaskOOM
			if e.Event != nil && proto.Unmarshal(e.Event.Value, &m) == nil && m.ContainerID == c.id {
				oom.Store(true)
			}
		}
	}()
	return oom.Load
}
