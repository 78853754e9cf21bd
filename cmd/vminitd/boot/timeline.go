package boot

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Entry is one timed boot step. Start and End are CLOCK_MONOTONIC readings,
// that is nanoseconds since the kernel started; an instant has Start == End.
type Entry struct {
	Name     string
	Start    time.Duration
	End      time.Duration
	Required bool
	Err      error // nil when the step worked
}

// Now reads CLOCK_MONOTONIC: the time since the kernel started, suspend not
// counted (clock_gettime(2)).
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // cannot happen: every kernel has this clock
	}
	return time.Duration(ts.Nano())
}

// Timeline collects entries in the order in which the steps ended. It is safe
// for concurrent use; the zero value is ready.
type Timeline struct {
	mu      sync.Mutex // guards entries
	entries []Entry
}

// Add records one entry.
func (t *Timeline) Add(e Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = append(t.entries, e)
}

// Mark records that name happened now.
func (t *Timeline) Mark(name string) {
	now := Now()
	t.Add(Entry{Name: name, Start: now, End: now})
}

// Entries returns a copy of what was recorded so far, sorted by start.
func (t *Timeline) Entries() []Entry {
	t.mu.Lock()
	entries := slices.Clone(t.entries)
	t.mu.Unlock()
	slices.SortStableFunc(entries, func(a, b Entry) int { return int(a.Start - b.Start) })
	return entries
}
