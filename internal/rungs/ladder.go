package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// counts are the results of single tests.
type counts struct{ passed, failed, skipped int }

func (c *counts) add(d counts) {
	c.passed += d.passed
	c.failed += d.failed
	c.skipped += d.skipped
}

// ladder is one run of the command.
type ladder struct {
	pattern string
	verbose bool
	out     io.Writer
	dir     string // of test binaries
	total   counts
	tests   map[string]counts // of the package's last run: each test with its subtests
	ran     map[string]int    // package and test: the highest rung that ran it, from 1
	skipped map[string]int    // the same: that skipped it
}

// packageTimeout ends a package's tests that hang, soakTimeout those at full size.
const (
	packageTimeout = 20 * time.Minute
	soakTimeout    = 4 * time.Hour
)

// soaking tells whether tests have their full size (make soak).
func soaking() bool { return os.Getenv("VMINIT_SOAK") != "" }

// host runs every package's tests on this machine.
func (l *ladder) host(rung string, packages []pkg, race bool, wrapper []string) error {
	fmt.Fprintf(l.out, "== %s\n", rung)
	timeout := packageTimeout
	if soaking() {
		timeout = soakTimeout
	}
	l.build(packages, race)
	for _, p := range packages {
		binary := l.binary(p, race)
		if _, err := os.Stat(binary); err != nil {
			continue // build has told
		}
		err := l.twice(p.path, func(pattern string) (int, error) {
			args := append(append([]string{}, wrapper...), binary, "-test.v=test2json", "-test.timeout="+timeout.String())
			args = append(args, selection(rung, p, pattern)...)
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Dir = p.dir
			cmd.Env = append(os.Environ(), "VMINIT_RUNG="+rung, "TMPDIR=/tmp")
			if rung == "user" {
				cmd.Env = append(cmd.Env, "HOME=/tmp")
			}
			return l.run(rung, p.path, cmd)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// selection are a test binary's flags for the tests that match the pattern, if
// there is one, and belong to the rung.
func selection(rung string, p pkg, pattern string) (flags []string) {
	if pattern != "" {
		flags = append(flags, "-test.run="+pattern)
	}
	if skip := notOnVM[p.path]; skip != "" && rung == "vm" {
		flags = append(flags, "-test.skip="+skip)
	}
	return flags
}

// twice runs a package's tests, and those that fail once more: guests under
// emulation and a busy machine miss deadlines. What failed the first time stays
// in the output; only the second time counts. run gets a pattern and returns the
// exit code: if that tells of more than failed tests (a panic, a timeout), the
// whole package runs again. Tests at full size have one run: what fails rarely
// is what they are for.
func (l *ladder) twice(path string, run func(pattern string) (int, error)) error {
	before := l.total
	l.tests = map[string]counts{}
	exit, err := run(l.pattern)
	failed := l.failedTests()
	switch {
	case err != nil || l.total.failed == before.failed || soaking():
		return err
	case exit != 1 || len(failed) == 0:
		fmt.Fprintf(l.out, "   %s: exit code %d, running it once more\n", path, exit)
		l.total = before
		_, err = run(l.pattern)
		return err
	}
	fmt.Fprintf(l.out, "   %s: running once more: %s\n", path, strings.Join(failed, " "))
	for _, name := range failed {
		c := l.tests[name]
		l.total.add(counts{-c.passed, -c.failed, -c.skipped})
	}
	_, err = run("^(" + strings.Join(failed, "|") + ")$")
	return err
}

// failedTests are those of the last run, without subtests, in order.
func (l *ladder) failedTests() (names []string) {
	for name, c := range l.tests {
		if c.failed > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// run runs one test binary, counts what it reports and returns its exit code.
func (l *ladder) run(rung, path string, cmd *exec.Cmd) (int, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		return 0, fmt.Errorf("run the tests of %s: %w", path, err)
	}
	defer r.Close()
	before := l.total
	began := time.Now()
	output, err := l.count(rung, path, r)
	if err != nil {
		return 0, err
	}
	if err := cmd.Wait(); err != nil && l.total.failed == before.failed { // a panic, a timeout, os.Exit
		l.total.failed++
		fmt.Fprintf(l.out, "--- FAIL: %s (%v)\n%s", path, err, output)
	}
	l.summary(path, before, began)
	return cmd.ProcessState.ExitCode(), nil
}

// event is a line of test2json.
type event struct{ Action, Test, Output string }

// count reads a test binary's output through test2json. It prints what failed
// and why something was skipped, and returns the last output that belongs to
// no test.
func (l *ladder) count(rung, path string, r io.Reader) (string, error) {
	conv := exec.Command("go", "tool", "test2json", "-p", path)
	conv.Stdin, conv.Stderr = r, os.Stderr
	events, err := conv.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := conv.Start(); err != nil {
		return "", err
	}
	logs := map[string]*strings.Builder{}
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		log := logs[e.Test]
		if log == nil {
			log = &strings.Builder{}
			logs[e.Test] = log
		}
		log.WriteString(e.Output)
		if e.Test != "" {
			l.result(rung, path, e, log.String())
		}
	}
	rest := ""
	if log := logs[""]; log != nil {
		rest = log.String()
	}
	return rest[max(0, len(rest)-16<<10):], conv.Wait()
}

func (l *ladder) result(rung, path string, e event, log string) {
	var one counts
	switch e.Action {
	case "pass":
		one.passed = 1
		if l.verbose {
			fmt.Fprint(l.out, log)
		}
	case "fail":
		one.failed = 1
		fmt.Fprintf(l.out, "--- FAIL: [%s] %s %s\n%s", rung, path, e.Test, log)
	case "skip":
		one.skipped = 1
		if l.verbose {
			fmt.Fprintf(l.out, "--- SKIP: [%s] %s %s\n%s", rung, path, e.Test, log)
		}
	default:
		return
	}
	l.total.add(one)
	name := path + " " + e.Test
	last := l.ran
	if e.Action == "skip" {
		last = l.skipped
	}
	last[name] = max(last[name], 1+slices.Index(ladderOf, rung))
	test, _, _ := strings.Cut(e.Test, "/")
	c := l.tests[test]
	c.add(one)
	l.tests[test] = c
}

// notMadeGood counts as failed every skip that no higher rung makes up for: what a
// test lacks on one rung the next ones have, and the last has everything. Unless
// the whole ladder was climbed only the last rung's can be told.
func (l *ladder) notMadeGood(whole bool) {
	for _, name := range slices.Sorted(maps.Keys(l.skipped)) {
		rung := l.skipped[name]
		if rung > l.ran[name] && (whole || rung == len(ladderOf)) {
			l.total.failed++
			fmt.Fprintf(l.out, "--- FAIL: %s: skipped on rung %s, and no higher one runs it\n", name, ladderOf[rung-1])
		}
	}
}

func (l *ladder) summary(path string, before counts, began time.Time) {
	fmt.Fprintf(l.out, "   %-40s %4d passed, %d failed, %d skipped  %6.1fs\n", path, l.total.passed-before.passed,
		l.total.failed-before.failed, l.total.skipped-before.skipped, time.Since(began).Seconds())
}
