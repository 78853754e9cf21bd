package tasksvc

import (
	"sort"
	"time"

	"github.com/containerd/containerd/api/types"
)

// entry is one event as an Exchange keeps it.
type entry struct {
	seq      uint64
	topic    string
	envelope func() *types.Envelope // what readers get, encoded once
	handed   int                    // subscriptions that took it; 0 is undelivered
	last     time.Time              // when it was handed over last
}

// eventQueue is a queue of entries in the order of their numbers.
type eventQueue struct {
	entries []*entry
	head    int // entries before it are gone
}

func (q *eventQueue) len() int { return len(q.entries) - q.head }

func (q *eventQueue) push(e *entry) { q.entries = append(q.entries, e) }

// front returns the oldest entry, nil if there is none.
func (q *eventQueue) front() *entry {
	if q.len() == 0 {
		return nil
	}
	return q.entries[q.head]
}

func (q *eventQueue) pop() {
	q.entries[q.head] = nil
	q.head++
	if q.head > len(q.entries)/2 { // each entry is moved once on average
		n := copy(q.entries, q.entries[q.head:])
		clear(q.entries[n:])
		q.entries, q.head = q.entries[:n], 0
	}
}

// from returns the first entry whose number is not below seq, nil if there is
// none.
func (q *eventQueue) from(seq uint64) *entry {
	live := q.entries[q.head:]
	i := sort.Search(len(live), func(i int) bool { return live[i].seq >= seq })
	if i == len(live) {
		return nil
	}
	return live[i]
}

// peek returns the next event for s, nil if it has had all, and moves its
// cursor past those that are not for it. The caller holds mu.
func (x *Exchange) peek(s *Subscription) *entry {
	for {
		e, other := x.exits.from(s.cursor), x.others.from(s.cursor)
		if e == nil || other != nil && other.seq < e.seq {
			e = other
		}
		if e == nil || e.seq > s.high || e.handed == 0 {
			return e
		}
		s.cursor = e.seq + 1
	}
}

// trim drops what nobody needs any more, and what there is no room for. The
// caller holds mu.
func (x *Exchange) trim() {
	unread := x.seq + 1 // the oldest event that some subscription has not had
	for s := range x.subs {
		unread = min(unread, s.cursor)
	}
	now := time.Now()
	settled := func(e *entry) bool {
		return e.handed > 0 && e.seq < unread && now.Sub(e.last) > inDoubt
	}
	for _, q := range []*eventQueue{&x.exits, &x.others} {
		for q.len() > 0 && settled(q.front()) {
			q.pop()
		}
	}
	for x.others.len() > maxOthers {
		x.drop(&x.others, &x.stats.DroppedOther, unread)
	}
	for x.exits.len() > maxExits {
		x.drop(&x.exits, &x.stats.DroppedExits, unread)
	}
}

// drop removes the oldest entry of q for want of room, and says so, if it was
// still wanted, the first time and then once in a thousand.
func (x *Exchange) drop(q *eventQueue, count *uint64, unread uint64) {
	e := q.front()
	q.pop()
	if e.handed > 0 && e.seq < unread {
		return
	}
	if *count%1000 == 0 {
		x.log.Warn("events: no room, dropping the oldest; is a subscriber stuck?",
			"topic", e.topic, "dropped", *count+1)
	}
	*count++
}
