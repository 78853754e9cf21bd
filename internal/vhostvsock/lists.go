package vhostvsock

// flowList is a first-in first-out list of flows, which can also be taken out of
// its middle. The zero value is empty.
type flowList struct {
	first, last *flow
}

func (l *flowList) empty() bool { return l.first == nil }

// push appends f unless it is in the list.
func (l *flowList) push(f *flow) {
	if f.queued {
		return
	}
	f.queued, f.prev = true, l.last
	if l.last == nil {
		l.first = f
	} else {
		l.last.next = f
	}
	l.last = f
}

// remove takes f out if it is in the list.
func (l *flowList) remove(f *flow) {
	if !f.queued {
		return
	}
	if f.prev == nil {
		l.first = f.next
	} else {
		f.prev.next = f.next
	}
	if f.next == nil {
		l.last = f.prev
	} else {
		f.next.prev = f.prev
	}
	f.queued, f.prev, f.next = false, nil, nil
}

// queue is a first-in first-out list. The zero value is empty.
type queue[T any] struct {
	items []T
	head  int
}

func (q *queue[T]) len() int { return len(q.items) - q.head }

func (q *queue[T]) push(v T) {
	if len(q.items) == cap(q.items) && q.head > len(q.items)/2 {
		q.items = q.items[:copy(q.items, q.items[q.head:])]
		q.head = 0
	}
	q.items = append(q.items, v)
}

func (q *queue[T]) pop() T {
	var zero T
	v := q.items[q.head]
	q.items[q.head] = zero
	if q.head++; q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return v
}
