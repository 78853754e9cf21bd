// Command rungs runs the project's tests on the ladder of docs/testing.md and
// prints one summary line: "N passed, N failed, N skipped".
//
//	user  every package's tests as an ordinary user
//	root  the same, race-detected, as root in a private mount namespace
//	vm    every package's tests inside a microVM, and those that drive one
//
// A test that needs more than its rung has skips itself. A skip that no higher
// rung makes up for is a failure, and so is every skip on the last: each rung has
// what those below it have. (VMINIT_RUNG tells a test where it is, so that most
// fail by themselves, with a better message.)
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// ladderOf are all rungs, from the bottom.
var ladderOf = []string{"user", "root", "vm"}

func main() {
	run := flag.String("rungs", strings.Join(ladderOf, ","), "rungs to climb, in order")
	pattern := flag.String("run", "", "only tests that match, as go test -run")
	verbose := flag.Bool("v", false, "print the output of tests that pass, too")
	flag.Parse()
	packages := flag.Args()
	if len(packages) == 0 {
		packages = []string{"./..."}
	}
	l := &ladder{pattern: *pattern, verbose: *verbose, out: os.Stdout, ran: map[string]int{}, skipped: map[string]int{}}
	if err := l.climb(strings.Split(*run, ","), packages); err != nil {
		fmt.Fprintln(os.Stderr, "rungs:", err)
		l.total.failed++
	}
	fmt.Printf("\n%d passed, %d failed, %d skipped\n", l.total.passed, l.total.failed, l.total.skipped)
	if l.total.failed > 0 {
		os.Exit(1)
	}
}

// climb runs the rungs one after the other; a failure does not end it.
func (l *ladder) climb(rungs, patterns []string) error {
	dir, err := os.MkdirTemp("", "vminit-tests-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // an ordinary user runs what is in it
		return err
	}
	l.dir = dir
	packages, err := list(patterns)
	if err != nil {
		return err
	}
	climbed := 0
	for _, r := range rungs {
		before := l.total
		switch r {
		case "user":
			plain := slices.DeleteFunc(slices.Clone(packages), func(p pkg) bool { return slices.Contains(needToolchain, p.path) })
			err = l.host(r, plain, false, asUser())
		case "root":
			if os.Getuid() != 0 {
				fmt.Fprintln(l.out, "== root: skipped, this user is not root")
				continue
			}
			err = l.host(r, packages, true, []string{"unshare", "--mount", "--propagation", "private"})
		case "vm":
			err = l.vm(packages)
		default:
			err = fmt.Errorf("unknown rung %q", r)
		}
		if err != nil {
			return fmt.Errorf("rung %s: %w", r, err)
		}
		fmt.Fprintf(l.out, "== %s: %d passed, %d failed, %d skipped\n", r, l.total.passed-before.passed, l.total.failed-before.failed, l.total.skipped-before.skipped)
		climbed++
	}
	l.notMadeGood(climbed == len(ladderOf))
	return nil
}

// asUser is the command that drops to an ordinary user, if we are root.
func asUser() []string {
	if os.Getuid() != 0 {
		return nil
	}
	return []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"}
}

// needToolchain are the packages whose tests build programs or run the go
// command, which an ordinary user of a root-owned checkout cannot; rung root
// runs all of them.
var needToolchain = []string{
	"vminit/cmd/vminitctl", "vminit/cmd/vminitd", "vminit/internal/house", "vminit/internal/initramfs", "vminit/internal/microvm",
	"vminit/internal/vhostvsock", "vminit/internal/vmtest", "vminit/internal/vmtest/probe", "vminit/internal/vmtest/testroot",
}

// pkg is a package with tests.
type pkg struct{ path, dir string }

func list(patterns []string) ([]pkg, error) {
	format := "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}"
	out, err := exec.Command("go", append([]string{"list", "-tags", "no_grpc", "-f", format}, patterns...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var all []pkg
	for line := range strings.Lines(string(out)) {
		if path, dir, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			all = append(all, pkg{path, dir})
		}
	}
	return all, nil
}

// binaries is where build puts the packages' tests.
func (l *ladder) binaries(race bool) string {
	if race {
		return filepath.Join(l.dir, "race")
	}
	return filepath.Join(l.dir, "plain")
}

// binary is a package's tests. go test -c names them after the last element of
// the path, and fails if two have the same.
func (l *ladder) binary(p pkg, race bool) string {
	return filepath.Join(l.binaries(race), path.Base(p.path)+".test")
}

// build compiles the packages' tests, those that it has not yet. What cannot be
// compiled is counted as failed and has no binary afterwards. All at once, and
// without debug information, takes a third of the time of one by one.
func (l *ladder) build(packages []pkg, race bool) {
	cgo, args := "CGO_ENABLED=0", []string{"test", "-c", "-tags", "no_grpc", "-ldflags=-w"}
	if race {
		cgo, args = "CGO_ENABLED=1", append(args, "-race")
	}
	args = append(args, "-o", l.binaries(race)+"/")
	known := len(args)
	for _, p := range packages {
		if _, err := os.Stat(l.binary(p, race)); err != nil {
			args = append(args, p.path)
		}
	}
	if len(args) == known {
		return
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(l.out, "--- FAIL: build the tests: %v\n%s", err, out)
		l.total.failed++
	}
}
