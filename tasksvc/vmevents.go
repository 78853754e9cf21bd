package tasksvc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	vmeventsapi "vminit/api/services/vmevents/v1"
)

// Events serves an Exchange as the streaming service Events, under the names
// spinbox.services.vmevents.v1 and nerdbox.services.vmevents.v1.
type Events struct {
	exchange *Exchange
	log      *slog.Logger
}

// NewEvents returns the service over x, which must outlive it.
func NewEvents(x *Exchange, log *slog.Logger) *Events {
	return &Events{exchange: x, log: log}
}

// Register adds the service to srv under both names.
func (e *Events) Register(srv *ttrpc.Server) {
	vmeventsapi.RegisterTTRPCEventsService(srv, e)
	vmeventsapi.RegisterNerdboxTTRPCEventsService(srv, nerdboxEvents{e})
}

// Stream implements Events.Stream.
func (e *Events) Stream(ctx context.Context, _ *emptypb.Empty, stream vmeventsapi.TTRPCEvents_StreamServer) error {
	return e.serve(ctx, stream.Send)
}

// nerdboxEvents is Events with the generated types of its other name.
type nerdboxEvents struct{ *Events }

func (e nerdboxEvents) Stream(ctx context.Context, _ *emptypb.Empty, stream vmeventsapi.NerdboxTTRPCEvents_StreamServer) error {
	return e.serve(ctx, stream.Send)
}

// serve sends events until the connection ends, or the Exchange does.
func (e *Events) serve(ctx context.Context, send func(*types.Envelope) error) error {
	return guardStream(e.log, "vmevents.Stream", func() error {
		sub := e.exchange.Subscribe()
		var sent time.Time // the last event that ttrpc took was handed over after this
		for {
			asked := time.Now()
			env, err := sub.Next(ctx)
			if errors.Is(err, io.EOF) {
				sub.Close()
				return nil
			} else if err != nil {
				sub.Lost(lostSince(ctx, sent))
				return err
			}
			if err := send(env); err != nil {
				sub.Lost(earlier(asked, lostSince(ctx, sent)))
				return err
			}
			sent = asked
		}
	})
}

// lostSince tells from how the connection ended which events sent over it may
// not have arrived: those handed over since the time returned, none if it is
// zero. sent is when the last one was handed over that ttrpc took to write;
// it takes none before the last has been written.
func lostSince(ctx context.Context, sent time.Time) time.Time {
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok || sent.IsZero() {
		return time.Time{}
	}
	switch c.fate() {
	case fateReset, fateOpen: // the peer went away with data unread, or the device was reset, or who knows
		return sent.Add(-inDoubt)
	case fateWriteFailed: // ttrpc stops at the first failed write, so it was this one
		return sent
	}
	return time.Time{}
}

// earlier returns the earlier of two times, of which b may be zero.
func earlier(a, b time.Time) time.Time {
	if !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
