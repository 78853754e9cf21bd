package vmtest

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"

	guestapi "vminit/api/services/guest/v1"
)

// Baseline is what a daemon holds while no container lives: the same at any
// two such moments, whatever happened between them.
//
// Descriptors and goroutines are counted by kind, mounts and cgroups are
// compared one by one. Threads and memory are not part of it: Go keeps threads
// once it has made them and gives memory back when it likes, so tests that care
// compare two moments after equal work (see TestFiveHundredLifecycles).
type Baseline struct {
	fds        map[string]int
	goroutines map[string]int
	mounts     map[string]int
	cgroups    map[string]int
	zombies    map[string]int
}

// Baseline takes the picture, of a guest that has settled: its boot is complete,
// its first container has come and gone, and the namespace for the next one,
// which is made a moment after the last, is not in the making. A connection
// beside our own that has just been closed is not in it either.
func (g *Guest) Baseline(ctx context.Context, t testing.TB) *Baseline {
	t.Helper()
	g.warm.Do(func() {
		_, err := g.Run(ctx, Spec("/bin/true"))
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			timeline, err := g.API.Timeline(ctx, &emptypb.Empty{})
			return err == nil && slices.ContainsFunc(timeline.Spans, func(s *guestapi.Span) bool { return s.Name == "boot/complete" })
		}, settleTimeout, 50*time.Millisecond, "the boot is not complete")
	})
	var last *Baseline
	for deadline := time.Now().Add(settleTimeout); ; time.Sleep(50 * time.Millisecond) {
		b, err := g.baseline(ctx)
		require.NoError(t, err)
		making := b.goroutines["time.goFunc"]+b.goroutines["vminit/nsexec.newNetwork"] > 0
		// The second when descriptors were counted while a namespace was in the
		// making, and goroutines when it was made.
		calm := b.goroutines["vminit/tasksvc.(*Server).Serve"] <= 1 && b.fds[network] == 0
		if !making && (calm || last != nil && last.diff(b) == "") || time.Now().After(deadline) {
			return b
		}
		if last = b; !calm {
			time.Sleep(200 * time.Millisecond)
		}
	}
}

// settleTimeout is how long what is under way when a call is answered may take
// to be over: closed connections to be noticed, goroutines to end.
const settleTimeout = 20 * time.Second

// Restored waits until the daemon holds what it held at the time of b again.
func (g *Guest) Restored(ctx context.Context, t testing.TB, b *Baseline) {
	t.Helper()
	deadline := time.Now().Add(settleTimeout)
	for {
		diff := b.diff(g.Baseline(ctx, t))
		if diff == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the guest is not as it was before:\n%s", diff)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (g *Guest) baseline(ctx context.Context) (*Baseline, error) {
	info, err := g.API.DebugInfo(ctx, &guestapi.DebugInfoRequest{Stacks: true})
	if err != nil {
		return nil, err
	}
	b := &Baseline{map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}, map[string]int{}}
	for _, f := range info.Fds {
		b.fds[kindOf(f.Target)]++
	}
	if b.fds[deviceFilter] <= keptFilters {
		delete(b.fds, deviceFilter)
	}
	if b.fds[network] <= 1 {
		delete(b.fds, network)
	}
	for stack := range strings.SplitSeq(info.GoroutineStacks, "\n\n") {
		b.goroutines[bornIn(stack)]++
	}
	for line := range strings.Lines(info.Mountinfo) {
		b.mounts[strings.TrimSpace(line)]++
	}
	for _, c := range info.Cgroups {
		b.cgroups[fmt.Sprintf("%s: %d processes, frozen %t", c.Path, c.Processes, c.Frozen)]++
	}
	for _, z := range info.Zombies {
		b.zombies[fmt.Sprintf("%d %s, child of %d", z.Pid, z.Name, z.ParentPid)]++
	}
	return b, nil
}

// The daemon keeps some of the device filters that no container uses any more
// (package cgroup2).
const deviceFilter, keptFilters = "anon_inode:bpf-prog", 8

// It also keeps a network namespace for the next container (nsexec.SpareNetwork).
var network = kindOf("net:[0]")

var inode = regexp.MustCompile(`\[\d+\]`)

// kindOf takes from a link of /proc/PID/fd what differs from time to time.
func kindOf(target string) string { return inode.ReplaceAllString(target, "") }

// bornIn tells which function a goroutine was started by.
func bornIn(stack string) string {
	_, birth, ok := strings.Cut(stack, "created by ")
	if !ok {
		return "main"
	}
	birth, _, _ = strings.Cut(birth, " in goroutine")
	birth, _, _ = strings.Cut(birth, "\n")
	return birth
}

// diff says what is more or less now than in b, line by line.
func (b *Baseline) diff(now *Baseline) string {
	var out strings.Builder
	for _, x := range []struct {
		name        string
		before, now map[string]int
	}{
		{"descriptor", b.fds, now.fds}, {"goroutine", b.goroutines, now.goroutines}, {"mount", b.mounts, now.mounts},
		{"cgroup", b.cgroups, now.cgroups}, {"zombie", b.zombies, now.zombies},
	} {
		keys := slices.AppendSeq(slices.Collect(maps.Keys(x.before)), maps.Keys(x.now))
		slices.Sort(keys)
		for _, key := range slices.Compact(keys) {
			if x.before[key] != x.now[key] {
				fmt.Fprintf(&out, "  %s %s: %d before, %d now\n", x.name, key, x.before[key], x.now[key])
			}
		}
	}
	return out.String()
}
