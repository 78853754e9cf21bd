package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
)

// Bounds of the console log.
const (
	consoleQueue  = 256 // lines waiting to be written
	consoleLine   = 4096
	consoleJSON   = 16 << 10 // of a line of JSON, which cannot be cut
	consoleString = 1200     // of a string in it; escapes make it longer
	consoleBurst  = 200      // lines written at once
	consolePerSec = 50       // lines a second after that
)

// console is an io.Writer for log lines that never blocks. A serial console is
// slow and may stand still (nobody reads the VMM's pipe), and no request must
// wait for that: lines queue up to a bound, are written by one goroutine at a
// bounded rate, and what does not fit is dropped and counted.
type console struct {
	out     io.Writer
	lines   chan consoleLineOrMark
	dropped atomic.Int64
	limited bool
	json    bool // lines are JSON objects
}

// consoleLineOrMark is a line to write or, with line nil, a place in the queue
// whose being reached is reported by closing reached.
type consoleLineOrMark struct {
	line    []byte
	reached chan struct{}
}

// newConsole starts the writing goroutine, which lives as long as the process.
// A console that is not limited drops lines only when its queue is full.
func newConsole(out io.Writer, limited, json bool) *console {
	c := &console{out: out, lines: make(chan consoleLineOrMark, consoleQueue), limited: limited, json: json}
	go c.run()
	return c
}

// logger returns the daemon's logger: lines of text or of JSON, from info upwards
// or, in debug mode, all of them.
func (c *console) logger(debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	if c.json {
		return slog.New(slog.NewJSONHandler(c, &slog.HandlerOptions{Level: level, ReplaceAttr: shorten}))
	}
	return slog.New(slog.NewTextHandler(c, &slog.HandlerOptions{Level: level}))
}

// shorten bounds long strings: half a line of JSON is none.
func shorten(_ []string, a slog.Attr) slog.Attr {
	s := a.Value.String()
	if err, ok := a.Value.Any().(error); ok {
		s = err.Error()
	}
	if len(s) > consoleString {
		a.Value = slog.StringValue(strings.ToValidUTF8(s[:consoleString], "") + "...")
	}
	return a
}

// Write queues a copy of p and always claims success.
func (c *console) Write(p []byte) (int, error) {
	longest := consoleLine
	if c.json {
		longest = consoleJSON
	}
	if c.json && len(p) > longest {
		c.dropped.Add(1)
		return len(p), nil
	}
	line := bytes.Clone(p[:min(len(p), longest)])
	if len(line) < len(p) {
		line[len(line)-1] = '\n'
	}
	select {
	case c.lines <- consoleLineOrMark{line: line}:
	default:
		c.dropped.Add(1)
	}
	return len(p), nil
}

// Flush waits until everything queued before it has been written.
func (c *console) Flush(ctx context.Context) error {
	reached := make(chan struct{})
	select {
	case c.lines <- consoleLineOrMark{reached: reached}:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-reached:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *console) run() {
	limit := bucket{tokens: consoleBurst, last: time.Now()}
	for item := range c.lines {
		switch {
		case item.reached != nil:
			c.reportDropped()
			close(item.reached)
		case c.limited && !limit.take(time.Now()):
			c.dropped.Add(1)
		default:
			c.reportDropped()
			_, _ = c.out.Write(item.line) // there is nowhere to report this to
		}
	}
}

func (c *console) reportDropped() {
	if n := c.dropped.Swap(0); n > 0 {
		form := "vminitd: %d log lines dropped\n"
		if c.json {
			form = `{"level":"WARN","msg":"log lines dropped","lines":%d}` + "\n"
		}
		fmt.Fprintf(c.out, form, n)
	}
}

// bucket is a token bucket of consoleBurst tokens refilled at consolePerSec.
type bucket struct {
	tokens float64
	last   time.Time
}

func (b *bucket) take(now time.Time) bool {
	b.tokens = min(consoleBurst, b.tokens+now.Sub(b.last).Seconds()*consolePerSec)
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
