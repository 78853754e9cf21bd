package vmtest

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"pgregory.net/rapid"

	guestapi "vminit/api/services/guest/v1"
	"vminit/internal/vmtest/model"
)

// soak returns the number of a long test, which VMINIT_SOAK asks for, or that
// of its short form.
func soak(long, short int) int {
	if os.Getenv("VMINIT_SOAK") != "" {
		return long
	}
	return short
}

// soakContext is for a test that takes up to the given time in its short form:
// a long one may take an hour more.
func soakContext(t *testing.T, short time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), short+time.Duration(soak(1, 0))*time.Hour)
	t.Cleanup(cancel)
	return ctx
}

// ledger keeps the books of all that happens in the guest until the test ends.
func (g *Guest) ledger(ctx context.Context, t *testing.T) *model.Ledger {
	t.Helper()
	client, err := g.VM.Client(ctx)
	require.NoError(t, err)
	api := guestapi.NewTTRPCGuestClient(client)
	stream, err := api.Events(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	_, err = api.Timeline(ctx, &emptypb.Empty{}) // answered: the one before was taken up
	require.NoError(t, err)
	l := model.NewLedger()
	var done sync.WaitGroup
	done.Go(func() {
		for {
			env, err := stream.Recv()
			if err != nil {
				return
			}
			l.Add(env)
		}
	})
	t.Cleanup(func() {
		client.Close()
		done.Wait()
	})
	return l
}

// codeOf is the code of an answer, or of the client's own impatience.
func codeOf(err error) codes.Code {
	if errors.Is(err, context.DeadlineExceeded) {
		return codes.DeadlineExceeded
	}
	return status.Code(err)
}

// awaitEnds waits until n containers have been deleted since before.
func awaitEnds(t *testing.T, l *model.Ledger, n int) {
	t.Helper()
	timeout := time.After(time.Minute)
	for {
		ends, more := l.Ends()
		if ends >= n {
			return
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("%d of %d deletes are in the ledger; alive: %v; wrong: %q", ends, n, l.Alive(), l.Wrong())
		}
	}
}

// The Task API over the wire against its reference model: 5,000 random calls
// with VMINIT_SOAK set, 500 else. 100,000 of them are made in process
// (package tasksvc).
func TestModel(t *testing.T) {
	g := Shared(t)
	ctx := soakContext(t, 20*time.Minute)
	ledger := g.ledger(ctx, t)
	base := g.Baseline(ctx, t)
	var ops atomic.Int64
	cfg := model.Config{
		Task: g.Task, Code: codeOf, Ledger: ledger, Ops: &ops, Limits: true,
		Bundle: func(k model.Kind) (*taskv3.CreateTaskRequest, error) {
			spec := Spec(k.Args...)
			spec.Process.Terminal = k.Terminal
			if k.Shared {
				spec.Linux.Namespaces = spec.Linux.Namespaces[1:]
			}
			config, err := json.Marshal(spec)
			if err != nil {
				return nil, err
			}
			r := &taskv3.CreateTaskRequest{ID: "m" + NewID(), Rootfs: RootMounts()}
			return r, g.MakeBundle(ctx, r, config)
		},
		Spec: func(k model.Kind) *specs.Process {
			p := Spec(k.Args...).Process
			p.Terminal = k.Terminal
			return p
		},
	}
	for name, value := range map[string]int{"rapid.steps": 100, "rapid.checks": 5} {
		f := flag.Lookup(name)
		if f.Value.String() == f.DefValue {
			require.NoError(t, f.Value.Set(strconv.Itoa(value)))
			defer f.Value.Set(f.DefValue)
		}
	}
	began := time.Now()
	for want := int64(soak(5000, 500)); ops.Load() < want && !t.Failed(); {
		rapid.Check(t, cfg.Run)
	}
	t.Logf("%d calls in %v", ops.Load(), time.Since(began).Round(time.Second))
	g.Restored(ctx, t, base)
}
