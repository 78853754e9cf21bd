package tasksvc

import (
	"context"
	"flag"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"vminit/internal/vmtest/model"
)

// modelSteps are how many calls one sequence of the model test has, about.
const modelSteps = 150

// soak returns the number of a long test, which VMINIT_SOAK asks for, or that
// of its short form.
func soak(long, short int) int {
	if os.Getenv("VMINIT_SOAK") != "" {
		return long
	}
	return short
}

// The Task API against its reference model: 100,000 random calls with
// VMINIT_SOAK set, 10,000 else.
func TestModel(t *testing.T) {
	h := newHost(t)
	ledger := model.NewLedger()
	sub := h.events.Subscribe()
	defer sub.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		for {
			env, err := sub.Next(ctx)
			if err != nil {
				return
			}
			ledger.Add(env)
		}
	}()
	bundles := map[string]string{}
	for _, k := range model.Kinds() {
		spec := testSpec("")
		spec.Process.Args, spec.Process.Terminal = k.Args, k.Terminal
		if k.Shared {
			spec.Linux.Namespaces = spec.Linux.Namespaces[1:]
		}
		bundles[k.Name] = h.bundle(spec)
	}
	var ops atomic.Int64
	cfg := model.Config{
		Task: h.Service, Code: func(err error) codes.Code { return status.Code(toStatus(err)) }, Ledger: ledger, Ops: &ops,
		Bundle: func(k model.Kind) (*taskv3.CreateTaskRequest, error) {
			return &taskv3.CreateTaskRequest{Bundle: bundles[k.Name]}, nil
		},
		Spec: func(k model.Kind) *specs.Process {
			return &specs.Process{Args: k.Args, Terminal: k.Terminal, Cwd: "/", Env: []string{"PATH=/bin"}}
		},
	}
	want := int64(soak(100_000, 10_000))
	if os.Getenv("VMINIT_RUNG") == "vm" { // where another test makes them over the wire
		want = 1000
	}
	for name, value := range map[string]int{"rapid.steps": modelSteps, "rapid.checks": soak(100, 10)} {
		f := flag.Lookup(name)
		if f.Value.String() != f.DefValue {
			continue // asked for
		}
		require.NoError(t, f.Value.Set(strconv.Itoa(value)))
		defer f.Value.Set(f.DefValue)
	}
	h.run("warmup", testSpec("true"))
	fds, mounts := countFds(t), countMounts(t)
	for ops.Load() < want && !t.Failed() {
		rapid.Check(t, cfg.Run)
	}
	t.Logf("%d calls", ops.Load())
	require.Eventually(t, func() bool { return countFds(t) <= fds+2 && countMounts(t) == mounts }, 10*time.Second, 10*time.Millisecond)
}
