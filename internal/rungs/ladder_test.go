package main

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

// Only what failed runs again, and only its second result counts.
func TestTwice(t *testing.T) {
	feed := func(l *ladder, exit int, results ...string) (int, error) {
		for i := 0; i < len(results); i += 2 {
			l.result("user", "p", event{Test: results[i], Action: results[i+1]}, "")
		}
		return exit, nil
	}
	for name, c := range map[string]struct {
		first, second []string
		exit          int
		again         string // the pattern of the second run
		want          counts
	}{
		"all pass":               {first: []string{"TestA", "pass", "TestB", "skip"}, want: counts{1, 0, 1}},
		"one fails once":         {[]string{"TestA", "pass", "TestB/x", "fail", "TestB/y", "pass", "TestB", "fail"}, []string{"TestB/x", "pass", "TestB/y", "pass", "TestB", "pass"}, 1, "^(TestB)$", counts{4, 0, 0}},
		"two fail, one for good": {[]string{"TestC", "fail", "TestA", "fail", "TestB", "pass"}, []string{"TestA", "fail", "TestC", "pass"}, 1, "^(TestA|TestC)$", counts{2, 1, 0}},
		"a panic":                {[]string{"TestA", "pass", "TestB", "fail"}, []string{"TestA", "pass", "TestB", "pass", "TestC", "pass"}, 2, "", counts{3, 0, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			l := &ladder{out: io.Discard, tests: map[string]counts{}, ran: map[string]bool{}}
			var patterns []string
			err := l.twice("p", func(pattern string) (int, error) {
				patterns = append(patterns, pattern)
				if len(patterns) == 1 {
					return feed(l, c.exit, c.first...)
				}
				return feed(l, 0, c.second...)
			})
			require.NoError(t, err)
			require.Equal(t, c.want, l.total)
			if c.second == nil {
				require.Len(t, patterns, 1)
			} else {
				require.Equal(t, []string{"", c.again}, patterns)
			}
		})
	}
}

func TestNowhere(t *testing.T) {
	l := &ladder{out: io.Discard, tests: map[string]counts{}, ran: map[string]bool{}}
	for _, r := range []struct{ rung, test, action string }{
		{"user", "TestA", "skip"}, {"user", "TestB", "skip"}, {"user", "TestC", "pass"}, {"user", "TestC/x", "skip"},
		{"root", "TestA", "pass"}, {"root", "TestB", "skip"}, {"root", "TestC", "skip"}, {"root", "TestC/x", "pass"},
	} {
		l.result(r.rung, "p", event{Test: r.test, Action: r.action}, "")
	}
	l.nowhere()
	require.Equal(t, 1, l.total.failed, "TestB has run nowhere")
}
