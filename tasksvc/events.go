package tasksvc

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"vminit/internal/sys"
)

// topicExit is the topic of the one event a host cannot do without.
const topicExit = "/tasks/exit"

const (
	maxExits  = 8192 // exits kept for subscribers, about 350 bytes each
	maxOthers = 1024 // all other events kept

	// inDoubt is how long an event that was handed over stays in doubt: if
	// the connection is reset within it, the event is handed over again.
	inDoubt = 5 * time.Second
)

// Exchange passes events from the daemon to its subscribers, in the order of
// publication.
//
// Publishing never waits for anybody: events are put into two bounded queues,
// one for exits and one for the rest, and each subscription reads both through
// a cursor of its own. A subscription that falls behind loses the oldest of
// the rest first; exits go only when maxExits of them are unread.
//
// An event stays undelivered until it has been handed to one subscription
// (observers do not count), and a new subscription begins with everything
// undelivered: a host that comes late, or back after a drop, sees each event
// that nobody has seen, once. What a broken connection may have swallowed is
// made undelivered again (Subscription.Lost), which is the one case of an
// event seen twice.
//
// All methods may be called concurrently.
type Exchange struct {
	log *slog.Logger

	mu      sync.Mutex // guards all below, and everything in entries and subscriptions
	seq     uint64     // of the newest event; the first is 1
	exits   eventQueue
	others  eventQueue
	subs    map[*Subscription]struct{}
	closed  bool
	changed chan struct{} // if not nil, Drain waits for it to be closed
	stats   ExchangeStats
}

// ExchangeStats counts what an Exchange did since it was made.
type ExchangeStats struct {
	Published    uint64
	DroppedExits uint64 // exits dropped undelivered or unread, for want of room
	DroppedOther uint64 // other events dropped in the same way
	Kept         int    // events in memory now
	Subscribers  int    // subscriptions now, observers included
}

// Subscription is one reader of an Exchange. Its methods are for one goroutine
// at a time. It must be ended with Close or Lost.
type Subscription struct {
	x        *Exchange
	wake     chan struct{} // has room for one; sent to when there is something new
	observer bool

	// The rest is guarded by x.mu.
	cursor uint64   // next event to look at
	high   uint64   // events up to here are taken only while undelivered
	idle   bool     // waits in Next and has been handed everything
	recent []handed // handed over within inDoubt, oldest first, at most maxExits
}

type handed struct {
	e  *entry
	at time.Time
}

// NewExchange returns an empty Exchange. log takes a line when an event has to
// be dropped.
func NewExchange(log *slog.Logger) *Exchange {
	return &Exchange{log: log, subs: map[*Subscription]struct{}{}}
}

// Publish stamps the event, which nobody may change any more, with the time and
// hands it to the subscribers. It never blocks. The error is ErrState once the
// Exchange is closed.
func (x *Exchange) Publish(namespace, topic string, event proto.Message) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return sys.Mark(sys.ErrState, fmt.Errorf("publish %s: the daemon is shutting down", topic))
	}
	x.seq++
	x.stats.Published++
	now := time.Now()
	e := &entry{seq: x.seq, topic: topic, envelope: sync.OnceValue(func() *types.Envelope {
		return x.envelope(now, namespace, topic, event)
	})}
	if topic == topicExit {
		x.exits.push(e)
	} else {
		x.others.push(e)
	}
	x.trim()
	for s := range x.subs {
		s.signal()
	}
	return nil
}

// envelope encodes an event: when somebody reads it, not while a container waits.
func (x *Exchange) envelope(at time.Time, namespace, topic string, event proto.Message) *types.Envelope {
	value, err := proto.Marshal(event)
	if err != nil {
		x.log.Error("encode event", "topic", topic, "error", err)
	}
	return &types.Envelope{
		Timestamp: timestamppb.New(at), Namespace: namespace, Topic: topic,
		// containerd's typeurl names messages without a "type.googleapis.com/".
		Event: &anypb.Any{TypeUrl: string(event.ProtoReflect().Descriptor().FullName()), Value: value},
	}
}

// Subscribe returns a subscription that begins with everything undelivered.
func (x *Exchange) Subscribe() *Subscription { return x.subscribe(false) }

// Observe returns a subscription that begins with what is published from now
// on. Events it is handed still count as undelivered.
func (x *Exchange) Observe() *Subscription { return x.subscribe(true) }

func (x *Exchange) subscribe(observer bool) *Subscription {
	s := &Subscription{x: x, wake: make(chan struct{}, 1), observer: observer}
	x.mu.Lock()
	defer x.mu.Unlock()
	s.high = x.seq
	if observer {
		s.cursor = x.seq + 1
	}
	x.subs[s] = struct{}{}
	return s
}

// Stats returns the counters.
func (x *Exchange) Stats() ExchangeStats {
	x.mu.Lock()
	defer x.mu.Unlock()
	st := x.stats
	st.Kept = x.exits.len() + x.others.len()
	st.Subscribers = len(x.subs)
	return st
}

// Next returns the next event, waiting for one if need be. Asking for the next
// says that the one before has been sent. The envelope is shared: it must not
// be changed. The error is that of ctx, or io.EOF when the Exchange is closed
// and everything has been handed over.
func (s *Subscription) Next(ctx context.Context) (*types.Envelope, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err // what is left is for the next subscription
		}
		e, closed := s.take()
		if e != nil {
			return e.envelope(), nil
		}
		if closed {
			return nil, io.EOF
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
		}
	}
}

// take hands over the next event, or marks the subscription idle.
func (s *Subscription) take() (e *entry, closed bool) {
	x := s.x
	x.mu.Lock()
	defer x.mu.Unlock()
	e = x.peek(s)
	if e == nil {
		s.idle = true
		x.notify()
		return nil, x.closed
	}
	s.cursor = e.seq + 1
	s.high = max(s.high, e.seq)
	if !s.observer {
		now := time.Now()
		e.handed++
		e.last = now
		for len(s.recent) == maxExits || len(s.recent) > 0 && now.Sub(s.recent[0].at) > inDoubt {
			s.recent[0] = handed{}
			s.recent = s.recent[1:]
		}
		s.recent = append(s.recent, handed{e, now})
	}
	x.trim()
	return e, false
}

// Close ends the subscription. Everything that Next returned counts as
// delivered.
func (s *Subscription) Close() { s.Lost(time.Time{}) }

// Lost ends the subscription like Close, but events that Next returned at or
// after since, if that is not zero, become undelivered again: the reader could
// not send them, or cannot tell whether they arrived. At most inDoubt of the
// past is remembered.
func (s *Subscription) Lost(since time.Time) {
	x := s.x
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.subs, s)
	for _, h := range s.recent {
		if since.IsZero() || h.at.Before(since) {
			continue
		}
		if h.e.handed--; h.e.handed == 0 {
			x.offerAgain(h.e)
		}
	}
	s.recent = nil
	x.trim()
	x.notify()
}

// offerAgain moves the live subscriptions back to an event that has become
// undelivered. What they were handed since is skipped by peek.
func (x *Exchange) offerAgain(e *entry) {
	for s := range x.subs {
		if !s.observer && s.cursor > e.seq {
			s.cursor = e.seq
			s.signal()
		}
	}
}

// Drain returns when every subscription has been handed, and has sent, all
// there is; at once when there is none. Observers are not waited for. The
// error is that of ctx.
//
// An orderly shutdown is: the last Publish, Drain, Close (which ends the
// streams), Server.Shutdown (which waits for their last bytes).
func (x *Exchange) Drain(ctx context.Context) error {
	for {
		x.mu.Lock()
		busy := 0
		for s := range x.subs {
			if !s.observer && !s.idle {
				busy++
			}
		}
		if busy == 0 {
			x.mu.Unlock()
			return nil
		}
		if x.changed == nil {
			x.changed = make(chan struct{})
		}
		changed := x.changed
		x.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("drain events: %d subscribers have not read all: %w", busy, ctx.Err())
		}
	}
}

// Close refuses further events. Subscriptions are handed what is left and then
// io.EOF. It may be called more than once.
func (x *Exchange) Close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	for s := range x.subs {
		s.signal()
	}
}

// signal wakes the subscription up. The caller holds mu.
func (s *Subscription) signal() {
	s.idle = false
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// notify lets Drain look again. The caller holds mu.
func (x *Exchange) notify() {
	if x.changed != nil {
		close(x.changed)
		x.changed = nil
	}
}
