package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// stuck is a console that stands still until it is let go.
type stuck struct {
	letGo chan struct{}
	mu    sync.Mutex // guards got
	got   bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.letGo
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Write(p)
}

func TestConsoleNeverBlocks(t *testing.T) {
	out := &stuck{letGo: make(chan struct{})}
	c := newConsole(out, false, false)
	log := c.logger(true)
	for range 3 * consoleQueue {
		log.Info("line")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.Flush(ctx), context.DeadlineExceeded)

	close(out.letGo)
	require.NoError(t, c.Flush(t.Context()))
	out.mu.Lock()
	defer out.mu.Unlock()
	require.LessOrEqual(t, strings.Count(out.got.String(), "msg=line"), consoleQueue+1)
	require.Contains(t, out.got.String(), "log lines dropped")
}

func TestConsoleLimits(t *testing.T) {
	out := &stuck{letGo: make(chan struct{})}
	close(out.letGo)
	c := newConsole(out, true, false)
	for range 20 { // flushed in between, so that only the rate drops lines
		for range 50 {
			_, _ = c.Write([]byte("line\n"))
		}
		require.NoError(t, c.Flush(t.Context()))
	}
	out.mu.Lock()
	defer out.mu.Unlock()
	lines := strings.Count(out.got.String(), "line\n")
	require.GreaterOrEqual(t, lines, consoleBurst)
	require.Less(t, lines, 1000)
}

func TestConsoleCutsLongLines(t *testing.T) {
	out := &stuck{letGo: make(chan struct{})}
	close(out.letGo)
	c := newConsole(out, false, false)
	_, err := c.Write(bytes.Repeat([]byte("x"), 2*consoleLine))
	require.NoError(t, err)
	require.NoError(t, c.Flush(t.Context()))
	out.mu.Lock()
	defer out.mu.Unlock()
	require.Equal(t, consoleLine, out.got.Len())
	require.True(t, strings.HasSuffix(out.got.String(), "x\n"))
}

func TestBucketRefills(t *testing.T) {
	now := time.Now()
	b := bucket{tokens: 1, last: now}
	require.True(t, b.take(now))
	require.False(t, b.take(now))
	require.True(t, b.take(now.Add(time.Second)))
	b.take(now.Add(time.Hour))
	require.LessOrEqual(t, b.tokens, float64(consoleBurst))
}

// TestConsoleJSON: every line is an object, also those that are too long and the
// one that tells of lines dropped.
func TestConsoleJSON(t *testing.T) {
	out := new(bytes.Buffer)
	c := newConsole(out, true, true)
	log := c.logger(false)
	log.Error("broken", "err", errors.New(strings.Repeat("\"\x01ä", 3000)), "stack", strings.Repeat("x\n", 5000))
	for range consoleBurst + 10 {
		log.Info("again")
	}
	require.NoError(t, c.Flush(t.Context()))
	var lines []map[string]any
	for line := range strings.Lines(out.String()) {
		m := map[string]any{}
		require.NoError(t, json.Unmarshal([]byte(line), &m), line)
		lines = append(lines, m)
	}
	require.Equal(t, "broken", lines[0]["msg"])
	require.Equal(t, "ERROR", lines[0]["level"])
	require.Less(t, len(lines), consoleBurst+9)
	last := lines[len(lines)-1]
	require.Equal(t, "log lines dropped", last["msg"])
	require.NotZero(t, last["lines"])
}
