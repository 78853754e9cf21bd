package vmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	runtimeapi "vminit/api/services/runtime/v1"
	"vminit/internal/initramfs"
	"vminit/internal/microvm"
)

// What a guest may cost, docs/STATUS.md. The memory is measured in
// TestFreshGuest.
const (
	maxDaemon  = 8 << 20  // bytes of vminitd, static and stripped
	maxImage   = 5 << 20  // bytes of an initramfs without modules, compressed
	maxIdleRSS = 10 << 20 // bytes resident in a guest that does nothing

	// maxAnswered is how long it may take from main until the first call has been
	// answered to its last byte, as a part of the kernel's own time until then.
	maxAnswered = 0.15
)

// TestAnswersSoon: the median of boots on one CPU, by the guest's own clocks. How
// long the kernel took to main includes executing vminitd and what Go does before
// main, which is logged.
func TestAnswersSoon(t *testing.T) {
	Require(t)
	var all []float64
	for range 5 {
		g := Boot(t, func(c *microvm.Config) { c.CPUs, c.MemoryMiB = 1, 512; traceExec(c) })
		ctx := Context(t)
		_, err := g.System.Info(ctx, &emptypb.Empty{})
		require.NoError(t, err)
		at := map[string]time.Duration{}
		for at["boot/first answer"] == 0 { // the host may have read it before the guest notes that it is written
			tl, err := g.API.Timeline(ctx, &emptypb.Empty{})
			require.NoError(t, err)
			for _, s := range tl.Spans {
				at[s.Name] = time.Duration(s.EndNs)
			}
		}
		kernel, serving, answered, exec := at["boot/kernel"], at["boot/serving"], at["boot/first answer"], g.executed(ctx, t)
		require.Less(t, exec, kernel)
		require.Less(t, kernel, serving)
		require.Less(t, serving, answered)
		part := func(to, from time.Duration) float64 { return 100 * float64(to-from) / float64(from) }
		t.Logf("kernel %v to exec, %v to main; serving after %v (%.1f %% of main), answered after %v (%.1f %%; %.1f %% from exec)", exec.Round(time.Millisecond),
			(kernel - exec).Round(time.Millisecond), (serving - kernel).Round(time.Millisecond), part(serving, kernel), (answered - kernel).Round(time.Millisecond), part(answered, kernel), part(answered, exec))
		all = append(all, part(answered, kernel)/100)
		require.NoError(t, g.Shutdown()) // one guest at a time
	}
	slices.Sort(all)
	require.LessOrEqual(t, all[len(all)/2], maxAnswered, "%v", all)
}

// traceExec has the kernel note when it executes PID 1, by the timeline's clock;
// its log goes by another, up to 80 ms behind.
func traceExec(c *microvm.Config) {
	c.Params = append(c.Params, "trace_event=sched:sched_process_exec", "trace_clock=mono")
}

// executed is when the kernel executed PID 1 in a guest with traceExec.
func (g *Guest) executed(ctx context.Context, t *testing.T) time.Duration {
	t.Helper()
	r, err := g.Run(ctx, Privileged("/bin/sh", "-c", "mount -t tracefs tracefs /sys/kernel/tracing && exec grep -m 1 filename=/init /sys/kernel/tracing/trace"))
	require.NoError(t, err)
	if r.Code != 0 {
		t.Logf("no account of the execve: %s", r.Stderr) // our small kernel cannot trace
		return 0
	}
	// init-1 [000] ..... 1.754321: sched_process_exec: filename=/init pid=1 old_pid=1
	at, _, _ := strings.Cut(r.Stdout, ": sched_process_exec:")
	exec, err := time.ParseDuration(at[strings.LastIndexByte(at, ' ')+1:] + "s")
	require.NoError(t, err, r)
	return exec
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
// the first is reached when the machine is quick, 58 to 102 ms, the second is
// not, 25 to 38 (docs/performance.md). The lower quartile counts: a machine that
// does other work makes the rest longer.
const (
	maxLife = 150 * time.Millisecond
	maxExec = 55 * time.Millisecond
)

func TestLatency(t *testing.T) {
	g := Boot(t, func(c *microvm.Config) { c.CPUs = 1 })
	ctx := Context(t)
	sleeper := g.Running(ctx, t, Spec("/bin/sleep", "1000"))
	extras := runtimeapi.NewTTRPCRuntimeClient(g.Client)
	var lives, execs, runs []time.Duration
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

		began = time.Now()
		_, err = extras.RunExec(ctx, &taskv3.ExecProcessRequest{ID: sleeper.id, ExecID: id, Spec: &anypb.Any{Value: process}})
		require.NoError(t, err)
		runs = append(runs, time.Since(began))
		if i < 8 { // warming up
			lives, execs, runs = nil, nil, nil
		}
	}
	quartile := func(what string, took []time.Duration) time.Duration {
		slices.Sort(took)
		n := len(took)
		t.Logf("%s: %v, lower quartile %v", what, took[n/2], took[n/4])
		return took[n/4]
	}
	require.LessOrEqual(t, quartile("a life cycle", lives), maxLife)
	require.LessOrEqual(t, quartile("an exec in four calls", execs), maxExec)
	require.LessOrEqual(t, quartile("an exec in one call", runs), maxExec)
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
