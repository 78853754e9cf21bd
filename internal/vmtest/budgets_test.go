package vmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"vminit/internal/initramfs"
	"vminit/internal/microvm"
)

// What a guest may cost, docs/design.md section 10. The memory is measured in
// TestFreshGuest.
const (
	maxDaemon  = 8 << 20  // bytes of vminitd, static and stripped
	maxImage   = 5 << 20  // bytes of an initramfs without modules, compressed
	maxIdleRSS = 10 << 20 // bytes resident in a guest that does nothing

	// maxServing is how long it may take from main until the ports are open, as a
	// part of the time from the kernel's start to main in the same boot. (The
	// first answer competes with the rest of the boot for the CPU and is logged.)
	maxServing = 0.15
)

// The best of three boots on one CPU counts: a boot that shares the machine with
// other work loses more time in its many small waits than the kernel does.
func TestServesSoon(t *testing.T) {
	Require(t)
	best := 1.0
	for range 3 {
		g := Boot(t, func(c *microvm.Config) { c.CPUs, c.MemoryMiB = 1, 512 })
		ctx := Context(t)
		began := time.Now()
		_, err := g.System.Info(ctx, &emptypb.Empty{})
		require.NoError(t, err)
		answer := time.Since(began)
		tl, err := g.API.Timeline(ctx, &emptypb.Empty{})
		require.NoError(t, err)
		var kernel, serving time.Duration
		for _, s := range tl.Spans {
			switch s.Name {
			case "boot/kernel":
				kernel = time.Duration(s.EndNs)
			case "boot/serving":
				serving = time.Duration(s.EndNs)
			}
		}
		require.NotZero(t, kernel)
		require.NotZero(t, serving)
		ratio := float64(serving-kernel) / float64(kernel)
		t.Logf("kernel %v, then %v until it serves: %.1f %%; %v to an answer", kernel, serving-kernel, 100*ratio, answer)
		if best = min(best, ratio); best <= maxServing {
			return
		}
	}
	require.LessOrEqual(t, best, maxServing)
}

func TestSizes(t *testing.T) {
	Require(t)
	a, err := artifacts()
	require.NoError(t, err)
	st, err := os.Stat(a.daemon)
	require.NoError(t, err)
	t.Logf("vminitd: %.2f MiB", mib(uint64(st.Size())))
	require.LessOrEqual(t, st.Size(), int64(maxDaemon))

	var image bytes.Buffer
	_, err = initramfs.Build(&image, initramfs.Config{Init: a.daemon})
	require.NoError(t, err)
	t.Logf("initramfs: %.2f MiB", mib(uint64(image.Len())))
	require.LessOrEqual(t, image.Len(), maxImage)
}

// What the public guest daemons take under TCG for a life cycle (600 ms) and an
// exec (220 ms) ours may take a fraction of. THREATS.md hopes for 90 ms and 11:
// the second is not reached (docs/performance.md). The lower quartile counts: a
// machine that does other work makes the rest longer.
const (
	maxLife = 90 * time.Millisecond
	maxExec = 40 * time.Millisecond
)

func TestLatency(t *testing.T) {
	g := Boot(t, func(c *microvm.Config) { c.CPUs = 1 })
	ctx := Context(t)
	sleeper := g.Running(ctx, t, Spec("/bin/sleep", "1000"))
	var lives, execs []time.Duration
	for i := range 24 {
		id := NewID()
		spec := Spec("/bin/true")
		config, err := json.Marshal(spec)
		require.NoError(t, err)
		create := &taskv3.CreateTaskRequest{ID: id, Rootfs: RootMounts()}
		require.NoError(t, g.MakeBundle(ctx, create, config))
		process, err := json.Marshal(spec.Process)
		require.NoError(t, err)

		began := time.Now()
		_, err = g.Task.Create(ctx, create)
		require.NoError(t, err)
		lives = append(lives, g.lived(ctx, t, began, id, ""))

		began = time.Now()
		_, err = g.Task.Exec(ctx, &taskv3.ExecProcessRequest{ID: sleeper.id, ExecID: id, Spec: &anypb.Any{Value: process}})
		require.NoError(t, err)
		execs = append(execs, g.lived(ctx, t, began, sleeper.id, id))
		if i < 8 { // warming up
			lives, execs = nil, nil
		}
	}
	slices.Sort(lives)
	slices.Sort(execs)
	n := len(lives)
	t.Logf("a life cycle: %v, lower quartile %v; an exec: %v, lower quartile %v", lives[n/2], lives[n/4], execs[n/2], execs[n/4])
	require.LessOrEqual(t, lives[n/4], maxLife)
	require.LessOrEqual(t, execs[n/4], maxExec)
}

// lived takes a process that has been created to its end.
func (g *Guest) lived(ctx context.Context, t *testing.T, began time.Time, id, exec string) time.Duration {
	t.Helper()
	_, err := g.Task.Start(ctx, &taskv3.StartRequest{ID: id, ExecID: exec})
	require.NoError(t, err)
	_, err = g.Task.Wait(ctx, &taskv3.WaitRequest{ID: id, ExecID: exec})
	require.NoError(t, err)
	_, err = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: id, ExecID: exec})
	require.NoError(t, err)
	return time.Since(began)
}
