package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
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
			l := &ladder{out: io.Discard, tests: map[string]counts{}, ran: map[string]int{}, skipped: map[string]int{}}
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

func TestNotMadeGood(t *testing.T) {
	climb := func(whole bool) (int, string) {
		var out strings.Builder
		l := &ladder{out: &out, tests: map[string]counts{}, ran: map[string]int{}, skipped: map[string]int{}}
		for _, r := range []struct{ rung, test, action string }{
			{"user", "TestAbove", "skip"}, {"root", "TestAbove", "skip"}, {"vm", "TestAbove", "pass"},
			{"user", "TestNowhere", "skip"}, {"root", "TestNowhere", "skip"}, {"vm", "TestNowhere", "skip"},
			{"user", "TestNotInGuests", "pass"}, {"root", "TestNotInGuests", "pass"},
			{"user", "TestBelow", "pass"}, {"root", "TestBelow", "skip"},
			{"user", "TestLast", "pass"}, {"root", "TestLast", "pass"}, {"vm", "TestLast", "skip"},
			{"user", "TestPart/x", "skip"}, {"root", "TestPart/x", "pass"},
			{"user", "TestFails", "skip"}, {"root", "TestFails", "fail"}, // that counts once
		} {
			l.result(r.rung, "p", event{Test: r.test, Action: r.action}, "")
		}
		before := l.total.failed
		l.notMadeGood(whole)
		return l.total.failed - before, out.String()
	}
	failed, said := climb(true)
	require.Equal(t, 3, failed, said)
	require.Contains(t, said, "p TestNowhere: skipped on rung vm")
	require.Contains(t, said, "p TestBelow: skipped on rung root")
	require.Contains(t, said, "p TestLast: skipped on rung vm")
	failed, said = climb(false) // of the lower rungs nothing can be told
	require.Equal(t, 2, failed, said)
	require.NotContains(t, said, "TestBelow")
}

// What is kept off rung vm is named as it is now: under another name it would run.
func TestNotOnVM(t *testing.T) {
	function := regexp.MustCompile(`(?m)^func (Test\w+)`)
	for path, pattern := range notOnVM {
		files, err := filepath.Glob(filepath.Join("../..", strings.TrimPrefix(path, "vminit/"), "*_test.go"))
		require.NoError(t, err)
		there := map[string]bool{}
		for _, f := range files {
			text, err := os.ReadFile(f)
			require.NoError(t, err)
			for _, m := range function.FindAllStringSubmatch(string(text), -1) {
				there[m[1]] = true
			}
		}
		for name := range strings.SplitSeq(strings.Trim(pattern, "^()$"), "|") {
			require.Contains(t, there, name, path)
		}
	}
}
