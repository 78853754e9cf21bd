// Command bench measures one container life cycle (create, start, wait, delete)
// of the same bundle by every contender, interleaved in one run, and prints
// medians and ratios. It writes bin/bench.json, an object of name -> number.
//
// It must run as root in a private mount namespace (make bench sees to that),
// where it replaces /sys/fs/cgroup by a pure cgroup2.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// contender runs one life cycle at a time.
type contender struct {
	name string
	note string
	run  func() (time.Duration, error)
	took []time.Duration
}

func (c *contender) median() time.Duration {
	s := slices.Sorted(slices.Values(c.took))
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}

func main() {
	rounds := flag.Int("n", 60, "counted rounds")
	daemon := flag.String("vminitd", "bin/vminitd", "the daemon to measure")
	output := flag.String("o", "bin/bench.json", "where the numbers go")
	heap := flag.Int("serve-heap", 0, "be a daemon with that many megabytes of heap (for the bench itself)")
	listen := flag.String("listen", "", "where that daemon listens")
	flag.Parse()
	if *heap > 0 {
		fmt.Fprintln(os.Stderr, "bench:", serveHeap(*heap, *listen))
		os.Exit(1)
	}
	if err := bench(*rounds, *daemon, *output); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(rounds int, daemon, output string) error {
	dir, err := os.MkdirTemp("", "vminit-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := pureCgroups(); err != nil {
		return err
	}
	b := &bundles{dir: dir}
	if err := b.make(); err != nil {
		return err
	}
	var l lineup
	defer l.close()
	if err := l.contenders(b, daemon); err != nil {
		return err
	}
	if err := race(l.all, rounds); err != nil {
		return err
	}
	report(l.all, rounds)
	return writeNumbers(output, numbers(l.all))
}

// race lets every contender run once a round, in turn, so that a machine whose
// speed drifts treats all alike. Two rounds are for warming up.
func race(all []*contender, rounds int) error {
	for i := range rounds + 2 {
		for _, c := range all {
			took, err := c.run()
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if i >= 2 {
				c.took = append(c.took, took)
			}
		}
	}
	return nil
}

func report(all []*contender, rounds int) {
	fmt.Printf("One life cycle (create, start, wait, delete), medians of %d interleaved rounds\n\n", rounds)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tmedian\tmin\t\t")
	for _, c := range all {
		fmt.Fprintf(w, "%s\t%v\t%v\t%s\t\n", c.name, c.median().Round(time.Microsecond), slices.Min(c.took).Round(time.Microsecond), c.note)
	}
	w.Flush()
	fmt.Println()
}

// ratios are the numbers the project is held to.
var ratios = []struct {
	name, of, to string
	target       float64
}{
	{"lifecycle_vs_crun", "vminitd (ttrpc)", "crun run", 0.4},
	{"lifecycle_vs_runc", "vminitd (ttrpc)", "runc run", 0.1},
	{"launch_vs_c", "in process", "C reference", 1.5},
	{"lifecycle_seccomp_vs_crun", "vminitd, seccomp", "crun run, seccomp", 0.15},
	{"exec_vs_crun", "vminitd exec", "crun exec", 0.2},
	{"launch_heap100_vs_heap10", "heap of 100 MB", "heap of 10 MB", 1.3},
}

func numbers(all []*contender) map[string]float64 {
	median := map[string]time.Duration{}
	out := map[string]float64{}
	for _, c := range all {
		median[c.name] = c.median()
	}
	for _, r := range ratios {
		if median[r.to] == 0 || median[r.of] == 0 {
			continue
		}
		v := float64(median[r.of]) / float64(median[r.to])
		verdict := "ok"
		if v > r.target {
			verdict = "MISSED"
		}
		fmt.Printf("%-24s %.3f  (target %.2f) %s\n", r.name, v, r.target, verdict)
		out[r.name] = v
	}
	for name, m := range median {
		out["us_"+key(name)] = float64(m.Nanoseconds()) / 1e3
	}
	return out
}

// key makes a name of words joined by underscores.
func key(name string) string {
	return strings.Join(strings.FieldsFunc(name, func(c rune) bool { return !unicode.IsLetter(c) && !unicode.IsDigit(c) }), "_")
}

func writeNumbers(path string, n map[string]float64) error {
	data, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
