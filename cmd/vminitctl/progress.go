package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/term"
)

// progress tells a person what is being waited for, on one line of the terminal
// that is wiped in the end. Where stderr is no terminal it is silent.
type progress struct {
	on      bool
	width   int
	written bool
	last    time.Time
}

func newProgress() *progress {
	fd := int(os.Stderr.Fd())
	p := &progress{on: term.IsTerminal(fd), width: 80}
	if w, _, err := term.GetSize(fd); err == nil && w > 0 {
		p.width = w
	}
	return p
}

// say replaces the line.
func (p *progress) say(format string, args ...any) {
	if !p.on {
		return
	}
	line := fmt.Sprintf(format, args...)
	if runes := []rune(line); len(runes) > p.width-1 {
		line = string(runes[:p.width-1])
	}
	fmt.Fprintf(os.Stderr, "\r\x1b[K%s", line)
	p.written = true
}

// bytes shows how far a transfer has got, at most ten times a second.
func (p *progress) bytes(what string) func(done, total int64) {
	return func(done, total int64) {
		if now := time.Now(); now.Sub(p.last) >= 100*time.Millisecond {
			p.last = now
			p.say("%s: %d of %d MiB", what, done>>20, total>>20)
		}
	}
}

// done wipes the line.
func (p *progress) done() {
	if p.written {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
		p.written = false
	}
}
