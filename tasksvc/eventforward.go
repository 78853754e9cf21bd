package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vminit/internal/sys"
)

const (
	forwardTimeout  = 10 * time.Second // for one connect or one call
	forwardFirstTry = 50 * time.Millisecond
	forwardLastTry  = 5 * time.Second // longest pause between two tries
	forwardRefusals = 5               // answers of "no" after which an event is given up
)

// Forwarder pushes the events of an Exchange to containerd's
// services.events.ttrpc.v1.Events/Forward on a unix socket, in order, one at a
// time. While the other side is away it tries again for ever; the Exchange
// keeps the exits meanwhile.
type Forwarder struct {
	sub     *Subscription
	address string
	log     *slog.Logger
	pause   time.Duration // before the second try; doubles up to forwardLastTry
	client  *ttrpc.Client // used by Run alone
}

// NewForwarder subscribes to x. address is the path of a unix socket, with or
// without "unix://" in front; "@" begins an abstract one. Run must follow.
func NewForwarder(x *Exchange, address string, log *slog.Logger) (*Forwarder, error) {
	path := strings.TrimPrefix(address, "unix://")
	if !strings.HasPrefix(path, "/") && !strings.HasPrefix(path, "@") {
		return nil, sys.Invalidf("events address %q: want unix:///path or an absolute path", address)
	}
	return &Forwarder{sub: x.Subscribe(), address: path, log: log, pause: forwardFirstTry}, nil
}

// Run forwards until ctx is done, or the Exchange is closed and everything has
// been forwarded; then it returns nil.
func (f *Forwarder) Run(ctx context.Context) error {
	defer f.disconnect()
	for {
		asked := time.Now()
		env, err := f.sub.Next(ctx)
		if errors.Is(err, io.EOF) {
			f.sub.Close()
			return nil
		} else if err != nil {
			f.sub.Close()
			return fmt.Errorf("forward events: %w", err)
		}
		if err := f.deliver(ctx, env); err != nil {
			f.sub.Lost(asked)
			return fmt.Errorf("forward events: %w", err)
		}
	}
}

// deliver forwards one event, trying again until it is taken, the other side
// has refused it forwardRefusals times, or ctx is done, which is the error.
func (f *Forwarder) deliver(ctx context.Context, env *types.Envelope) error {
	refusals := 0
	for pause := f.pause; ; pause = min(2*pause, forwardLastTry) {
		err := f.forward(ctx, env)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if answered(err) {
			if refusals++; refusals == forwardRefusals {
				f.log.Error("events: refused, giving it up", "topic", env.Topic, "namespace", env.Namespace, "error", err)
				return nil
			}
		} else {
			f.disconnect()
		}
		f.log.Debug("events: forward failed", "to", f.address, "error", err, "retry_in", pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// answered reports whether err is the other side's answer to this event, as
// opposed to no answer, or one about its own state.
func answered(err error) bool {
	st, ok := status.FromError(err)
	return ok && st.Code() != codes.Unavailable && st.Code() != codes.DeadlineExceeded && st.Code() != codes.Canceled
}

// forward makes one try.
func (f *Forwarder) forward(ctx context.Context, env *types.Envelope) error {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	if f.client == nil {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", f.address)
		if err != nil {
			return err
		}
		f.client = ttrpc.NewClient(c)
	}
	_, err := eventsapi.NewTTRPCEventsClient(f.client).Forward(ctx, &eventsapi.ForwardRequest{Envelope: env})
	return err
}

func (f *Forwarder) disconnect() {
	if f.client != nil {
		f.client.Close()
		f.client = nil
	}
}
