package vhostvsock

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// checkLeaks fails the test if it ends with more descriptors, goroutines or mappings
// of guest memory than it has now. Call it before anything that is cleaned up.
func checkLeaks(t testing.TB) {
	t.Helper()
	before := resources()
	t.Cleanup(func() {
		deadline := time.Now().Add(5 * time.Second)
		for after := resources(); after.exceeds(before); after = resources() {
			if time.Now().After(deadline) {
				stacks := make([]byte, 1<<16)
				t.Errorf("leak: before %+v, after %+v\n%s\n%s", before, after, openFiles(), stacks[:runtime.Stack(stacks, true)])
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
}

type resourceCount struct{ fds, goroutines, maps int }

func (a resourceCount) exceeds(b resourceCount) bool {
	return a.fds > b.fds || a.goroutines > b.goroutines || a.maps > b.maps
}

func resources() resourceCount {
	return resourceCount{strings.Count(openFiles(), "\n"), runtime.NumGoroutine(), countMaps()}
}

// openFiles lists what is open, less the list itself and what the runtime keeps.
func openFiles() string {
	var b strings.Builder
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			fmt.Fprintf(&b, "%s %s\n", fd.Name(), to)
		}
	}
	return b.String()
}

// countMaps returns how many mappings of fake guest memory there are.
func countMaps() int {
	maps, _ := os.ReadFile("/proc/self/maps")
	return strings.Count(string(maps), "memfd:guest")
}

// TestMain opens Go's own poller before anything is counted.
func TestMain(m *testing.M) {
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	r.Close()
	w.Close()
	os.Exit(m.Run())
}
