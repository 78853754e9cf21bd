package vmtest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

// PID 1 reaps orphans by the thousand, 100,000 with VMINIT_SOAK set and 5,000
// else, while execs run, 1,000 or 40: every exec's status is right and none of
// the dead is left. nsexec's test of the same name has full size natively.
func TestOrphanFlood(t *testing.T) {
	g := Shared(t)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	base := g.Baseline(ctx, t)
	// In the guest's pid namespace: their orphans are PID 1's.
	inGuests := func(args ...string) *specs.Spec {
		spec := Spec(args...)
		spec.Linux.Namespaces = without(spec.Linux.Namespaces, specs.PIDNamespace)
		return spec
	}
	c := g.Running(ctx, t, inGuests("/bin/sleep", "100000"))
	orphans, execs := soak(100_000, 5000), soak(1000, 40)
	flood, err := g.Create(ctx, "c"+NewID(), inGuests("/bin/probe", "flood", fmt.Sprint(orphans)), false)
	require.NoError(t, err)
	began := time.Now()
	require.NoError(t, flood.Start(ctx))
	ended := make(chan struct{})
	var made Result
	go func() {
		defer close(ended)
		var err error
		if made, err = flood.Finish(ctx); err != nil {
			t.Errorf("%v", err)
		}
	}()

	var all sync.WaitGroup
	ran := make([]int, 4)
	for w := range ran {
		all.Go(func() {
			for flooding := true; flooding || ran[w] < execs/len(ran); ran[w]++ {
				want := uint32((w*61 + ran[w]) % 251)
				r, err := g.execs(ctx, t, c.ID(), Spec("/bin/sh", "-c", fmt.Sprintf("true & true & exit %d", want)).Process)
				if err != nil || r.Code != want {
					t.Errorf("exec %d.%d: %v, status %d, want %d", w, ran[w], err, r.Code, want)
					return
				}
				select {
				case <-ended:
					flooding = false
				default:
				}
			}
		})
	}
	all.Wait()
	require.JSONEq(t, fmt.Sprintf(`{"orphans":%d}`, orphans), strings.TrimSpace(made.Stdout), made.Stderr)
	t.Logf("%d orphans, %v execs in %v", orphans, ran, time.Since(began).Round(time.Second))
	g.end(t, c)
	g.Restored(ctx, t, base)
}

func without(all []specs.LinuxNamespace, kind specs.LinuxNamespaceType) (rest []specs.LinuxNamespace) {
	for _, n := range all {
		if n.Type != kind {
			rest = append(rest, n)
		}
	}
	return rest
}

// A container without a limit that takes all of the guest's memory: it dies, with
// an event that says why, and the daemon answers State all the while.
func TestMemoryTaken(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	events := g.observe(ctx, t)
	base := g.Baseline(ctx, t)
	p, err := g.Create(ctx, "c"+NewID(), Spec("/bin/probe", "eatmem", "-hold", "60s", "8G"), false)
	require.NoError(t, err)
	require.NoError(t, p.Start(ctx))
	ended := make(chan error, 1)
	go func() {
		r, err := p.Finish(ctx)
		if err == nil && r.Code != 137 {
			err = fmt.Errorf("it ended with %+v", r)
		}
		ended <- err
	}()
	answers, slowest := 0, time.Duration(0)
	for {
		asked := time.Now()
		_, err := g.Task.State(ctx, &taskv3.StateRequest{ID: p.ID()})
		if err != nil { // it has been deleted
			require.NoError(t, <-ended)
			break
		}
		answers++
		slowest = max(slowest, time.Since(asked))
	}
	t.Logf("%d answers meanwhile, the slowest after %v", answers, slowest.Round(time.Millisecond))
	require.Less(t, slowest, 5*time.Second)
	require.Equal(t, []string{"create", "start", "oom", "exit " + p.ID() + " 137", "delete"}, events.of(t, p.ID(), "delete"))
	g.Restored(ctx, t, base)
}
