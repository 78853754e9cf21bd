package microvm

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// monitor plays QEMU: it greets, then answers each line with what answer says.
func monitor(t *testing.T, greeting string, answer func(command string, id uint64) []string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	go func() {
		defer theirs.Close()
		fmt.Fprintln(theirs, greeting)
		s := bufio.NewScanner(theirs)
		for s.Scan() {
			var c struct {
				Execute string
				ID      uint64
			}
			if json.Unmarshal(s.Bytes(), &c) != nil {
				return
			}
			lines := []string{fmt.Sprintf(`{"return": {}, "id": %d}`, c.ID)}
			if c.Execute != "qmp_capabilities" {
				lines = answer(c.Execute, c.ID)
			}
			if lines == nil {
				return
			}
			for _, line := range lines {
				fmt.Fprintln(theirs, line)
			}
		}
	}()
	return ours
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`

func TestQMP(t *testing.T) {
	events := make(chan Event, 1)
	conn := monitor(t, greeting, func(command string, id uint64) []string {
		switch command {
		case "query-status":
			return []string{
				`{"timestamp": {"seconds": 1700000000, "microseconds": 250000}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}`,
				fmt.Sprintf(`{"id": %d, "return": {"status": "running"}}`, id),
			}
		case "quit":
			return nil
		}
		return []string{fmt.Sprintf(`{"id": %d, "error": {"class": "CommandNotFound", "desc": "The command x has not been found"}}`, id)}
	})
	q, err := newQMP(t.Context(), conn, func(e Event) { events <- e })
	require.NoError(t, err)
	defer q.Close()

	var status struct{ Status string }
	require.NoError(t, q.Execute(t.Context(), "query-status", nil, &status))
	require.Equal(t, "running", status.Status)
	e := <-events
	require.Equal(t, "SHUTDOWN", e.Name)
	require.Equal(t, time.Unix(1700000000, 250e6), e.At)

	var refused *QMPError
	require.ErrorAs(t, q.Execute(t.Context(), "x", nil, nil), &refused)
	require.Equal(t, "CommandNotFound", refused.Class)

	require.ErrorIs(t, q.Execute(t.Context(), "quit", nil, nil), errQMPClosed)
	require.ErrorIs(t, q.Execute(t.Context(), "query-status", nil, nil), errQMPClosed)
}

func TestQMPBadGreeting(t *testing.T) {
	for _, g := range []string{"hello", `{"return": {}}`, `{"QMP": {}, "event": "X"}`, strings.Repeat("x", maxQMPLine+1)} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := newQMP(ctx, monitor(t, g, nil), nil)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.Error(t, err, "%.40q", g)
	}
}

func TestQMPSilence(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := newQMP(ctx, ours, nil)
	require.Error(t, err)
}

func TestQMPCommandTimesOut(t *testing.T) {
	q, err := newQMP(t.Context(), monitor(t, greeting, func(string, uint64) []string { return []string{} }), nil)
	require.NoError(t, err)
	defer q.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, q.Execute(ctx, "query-status", nil, nil), context.DeadlineExceeded)
}

func FuzzParseQMP(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(`{"return": {}, "id": 1}`))
	f.Add([]byte(`{"error": {"class": "GenericError", "desc": "no"}, "id": 18446744073709551615}`))
	f.Add([]byte(`{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}`))
	f.Add([]byte(`{"event": "STOP", "return": null}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := parseQMP(line)
		if (m == nil) != (err != nil) {
			t.Fatalf("%v, %v", m, err)
		}
		if m != nil {
			m.event(time.Now())
			if m.Error != nil && errors.Unwrap(fmt.Errorf("%w", m.Error)) == nil {
				t.Fatal("lost")
			}
		}
	})
}
