package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	guestapi "vminit/api/services/guest/v1"
	"vminit/internal/microvm"
)

// Where a row of the timeline was measured.
const (
	onHost  = "host"
	onGuest = "guest"
)

// row is one thing that took time, or an instant (End equals Start).
type row struct {
	Where string
	Name  string
	Start time.Time
	End   time.Time
	Err   string
}

// timeline collects measurements. It may be used concurrently; the zero value
// is ready, and nil collects nothing.
type timeline struct {
	mu   sync.Mutex // guards rows
	rows []row
}

func (t *timeline) add(r row) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows = append(t.rows, r)
}

// begin starts to measure; the function it returns ends that.
func (t *timeline) begin(name string) func() {
	start := time.Now()
	return func() { t.add(row{Where: onHost, Name: name, Start: start, End: time.Now()}) }
}

// machine adds what happened to a VM as seen from outside.
func (t *timeline) machine(marks []microvm.Mark) {
	var started time.Time
	for _, m := range marks {
		r := row{Where: onHost, Name: m.Name, Start: m.At, End: m.At}
		switch m.Name {
		case microvm.MarkStart:
			started = m.At
			continue
		case microvm.MarkMonitor:
			r.Name, r.Start = "start QEMU", started
		}
		t.add(r)
	}
}

// guest adds what the guest measured. asked and answered are when the host sent
// the question and got the answer; the guest's clock is placed in their middle.
// What was over before since is left out, what had begun is shown from there on:
// also the kernel's start if the guest's clock has jumped, which it now and then
// does by minutes when an emulated machine boots beside much other work.
func (t *timeline) guest(r *guestapi.TimelineResponse, asked, answered, since time.Time) {
	zero := asked.Add(answered.Sub(asked) / 2).Add(-time.Duration(r.NowNs))
	for _, s := range r.Spans {
		start := zero.Add(time.Duration(s.StartNs))
		end := start
		if s.EndNs > s.StartNs {
			end = zero.Add(time.Duration(s.EndNs))
		}
		if end.Before(since) {
			continue
		}
		if start.Before(since) {
			start = since
		}
		t.add(row{Where: onGuest, Name: s.Name, Start: start, End: end, Err: s.Error})
	}
}

// sorted returns the rows in the order they began, longer ones first.
func (t *timeline) sorted() []row {
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := slices.Clone(t.rows)
	slices.SortStableFunc(rows, func(a, b row) int {
		return cmp.Or(a.Start.Compare(b.Start), b.End.Compare(a.End))
	})
	return rows
}

// print writes the table, times in milliseconds since the first row began.
func (t *timeline) print(w io.Writer, asJSON bool) error {
	rows := t.sorted()
	if len(rows) == 0 {
		return nil
	}
	zero := rows[0].Start
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	if asJSON {
		type jsonRow struct {
			Where  string  `json:"where"`
			Name   string  `json:"name"`
			AtMS   float64 `json:"atMs"`
			TookMS float64 `json:"tookMs"`
			Error  string  `json:"error,omitempty"`
		}
		out := make([]jsonRow, 0, len(rows))
		for _, r := range rows {
			out = append(out, jsonRow{r.Where, r.Name, ms(r.Start.Sub(zero)), ms(r.End.Sub(r.Start)), r.Err})
		}
		return json.NewEncoder(w).Encode(out)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%10s  %10s  %-5s  %s\n", "at ms", "took ms", "where", "what")
	for _, r := range rows {
		took := ""
		if r.End.After(r.Start) {
			took = fmt.Sprintf("%.1f", ms(r.End.Sub(r.Start)))
		}
		fmt.Fprintf(&b, "%10.1f  %10s  %-5s  %s", ms(r.Start.Sub(zero)), took, r.Where, r.Name)
		if r.Err != "" {
			fmt.Fprintf(&b, ": %s", r.Err)
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
