package vmtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
)

// Every event of a run, exactly once, in order, with the right status, and
// every Wait the same: 2,000 containers with two execs each with VMINIT_SOAK
// set, 60 else; half of them while the guest has only 400 pids, so that they
// are used again and again. No two processes of a container have the same exit
// code, and the exits of init and the last exec race.
func TestLedger(t *testing.T) {
	g := Shared(t)
	ctx := soakContext(t, 30*time.Minute)
	ledger := g.ledger(ctx, t)
	base := g.Baseline(ctx, t)
	lives := soak(2000, 60)
	before, _ := ledger.Ends()
	var want sync.Map // name -> exit code
	plenty, few := &pidCount{seen: map[uint32]int{}}, &pidCount{seen: map[uint32]int{}}
	began := time.Now()
	g.keepBooks(ctx, t, 0, lives/2, &want, plenty)

	most := g.pidMax(ctx, t, "400")
	defer g.pidMax(context.WithoutCancel(ctx), t, most)
	g.keepBooks(ctx, t, lives/2, lives, &want, few)
	for pid := range few.seen {
		require.LessOrEqual(t, pid, uint32(400))
	}
	t.Logf("%d containers, %d execs in %v; %d pids of %d were used again", lives, 2*lives, time.Since(began).Round(time.Second), few.again, len(few.seen))

	awaitEnds(t, ledger, before+lives)
	require.Empty(t, ledger.Wrong())
	got := ledger.Exits()
	for id, codes := range got {
		if !strings.HasPrefix(id, "book") {
			delete(got, id) // the run that Baseline makes
			continue
		}
		code, ok := want.LoadAndDelete(id)
		require.True(t, ok, "exit of %s, which nobody started", id)
		require.Equal(t, []uint32{code.(uint32)}, codes, id)
	}
	require.Len(t, got, 3*lives)
	g.Restored(ctx, t, base)
}

// pidCount counts the pids that processes were given.
type pidCount struct {
	mu    sync.Mutex // guards all below
	seen  map[uint32]int
	again int
}

func (c *pidCount) add(pid uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen[pid]++; c.seen[pid] > 1 {
		c.again++
	}
}

// pidMax sets how many pids the guest has and returns how many it had.
func (g *Guest) pidMax(ctx context.Context, t *testing.T, n string) string {
	t.Helper()
	r, err := g.Run(ctx, Privileged("/bin/sh", "-c", "cat /proc/sys/kernel/pid_max; echo "+n+" > /proc/sys/kernel/pid_max"))
	require.NoError(t, err)
	require.Zero(t, r.Code, r.Stderr)
	return strings.TrimSpace(r.Stdout)
}

// keepBooks runs the lives from..to-1, four at a time.
func (g *Guest) keepBooks(ctx context.Context, t *testing.T, from, to int, want *sync.Map, pids *pidCount) {
	t.Helper()
	var next atomic.Int64
	next.Store(int64(from))
	var all sync.WaitGroup
	errs := make([]error, 4)
	for i := range errs {
		all.Go(func() {
			for errs[i] == nil {
				n := int(next.Add(1)) - 1
				if n >= to {
					return
				}
				if err := g.bookedLife(ctx, n, want, pids); err != nil {
					errs[i] = fmt.Errorf("life %d: %w", n, err)
				}
			}
		})
	}
	all.Wait()
	require.NoError(t, errors.Join(errs...))
}

// bookedLife is a container whose init ends when its last exec tells it to. A
// tenth of them are killed instead, with an exec alive.
func (g *Guest) bookedLife(ctx context.Context, n int, want *sync.Map, pids *pidCount) error {
	id := "book" + NewID()
	killed := n%10 == 9
	codes := [3]uint32{uint32(n % 255), uint32((n + 85) % 255), uint32((n + 170) % 255)}
	config := fmt.Sprintf("mkfifo /tmp/end; read x < /tmp/end; exit %d", codes[0])
	last := fmt.Sprintf("while ! test -p /tmp/end; do :; done; echo > /tmp/end; exit %d", codes[2])
	if killed {
		last, codes[0], codes[2] = "sleep 1000", 137, 137
	}
	r := &taskv3.CreateTaskRequest{ID: id, Rootfs: RootMounts()}
	data, err := marshalSpec(Spec("/bin/sh", "-c", config))
	if err != nil {
		return err
	}
	if err := g.MakeBundle(ctx, r, data); err != nil {
		return err
	}
	if _, err := g.Task.Create(ctx, r); err != nil {
		return err
	}
	start := func(exec string) error {
		s, err := g.Task.Start(ctx, &taskv3.StartRequest{ID: id, ExecID: exec})
		if err == nil {
			pids.add(s.Pid)
		}
		return err
	}
	if err := start(""); err != nil {
		return err
	}
	for i, script := range []string{fmt.Sprintf("exit %d", codes[1]), last} {
		exec := fmt.Sprintf("e%d", i)
		spec, err := marshalSpec(&specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}})
		if err != nil {
			return err
		}
		if _, err := g.Task.Exec(ctx, &taskv3.ExecProcessRequest{ID: id, ExecID: exec, Spec: &anypb.Any{Value: spec}}); err != nil {
			return err
		}
		if err := start(exec); err != nil {
			return err
		}
		if i > 0 {
			break
		}
		if _, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: id, ExecID: exec}); err != nil {
			return err
		}
	}
	if killed {
		if _, err := g.Task.Kill(ctx, &taskv3.KillRequest{ID: id, Signal: 9}); err != nil {
			return err
		}
	}
	for i, exec := range []string{"", "e0", "e1"} {
		w, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: id, ExecID: exec})
		if err != nil {
			return err
		}
		// An exec may still be at its exit when init has ended, and be killed.
		if i == 2 && w.ExitStatus == 137 {
			codes[2] = 137
		}
		if w.ExitStatus != codes[i] {
			return fmt.Errorf("%s %s: exit code %d, must be %d", id, exec, w.ExitStatus, codes[i])
		}
		name := id
		if exec != "" {
			name += "/" + exec
		}
		want.Store(name, codes[i])
	}
	d, err := g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: id})
	if err == nil && d.ExitStatus != codes[0] {
		err = fmt.Errorf("delete %s: exit code %d, must be %d", id, d.ExitStatus, codes[0])
	}
	return err
}
