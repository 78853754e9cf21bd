package vmtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/ttrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	vmeventsapi "vminit/api/services/vmevents/v1"
	"vminit/internal/microvm"
	"vminit/internal/vmtest/model"
	"vminit/vsockstream"
)

// The host's connection is cut in the middle of a call, 200 times with
// VMINIT_SOAK set, 40 else, at every kind of call in turn. The host comes back,
// finds out how far it got, and goes on: no container dies of it, what was cut
// off can be asked again, Wait gives the exit, and the events, whose own
// connection is cut as often, are complete.
func TestConnectionDrops(t *testing.T) {
	g := Shared(t)
	ctx := soakContext(t, 20*time.Minute)
	base := g.Baseline(ctx, t)
	d := &dropper{g: g, t: t, ctx: ctx, ledger: model.NewLedger(), seen: map[string]bool{}}
	d.subscribe()
	before, _ := d.ledger.Ends()
	survivor, err := g.Create(ctx, "drop-survivor", Spec("/bin/sleep", "100000"), false)
	require.NoError(t, err)
	require.NoError(t, survivor.Start(ctx))
	pid, err := survivor.PID(ctx)
	require.NoError(t, err)

	drops, lives := soak(200, 40), 0
	for ; d.drops < drops; lives++ {
		d.life(lives)
		d.resubscribe()
	}
	now, err := survivor.PID(ctx)
	require.NoError(t, err)
	require.Equal(t, pid, now)
	g.end(t, survivor)
	awaitEnds(t, d.ledger, before+lives+1)
	d.unsubscribe()
	require.Empty(t, d.ledger.Wrong())
	exits := d.ledger.Exits()
	for n := range lives {
		id := fmt.Sprintf("drop%d", n)
		require.Equal(t, []uint32{uint32(n % 200)}, exits[id], id)
		require.Equal(t, []uint32{uint32((n + 50) % 200)}, exits[id+"/e"], id)
	}
	t.Logf("%d connections cut in %d lives; calls that had been carried out: %d", d.drops, lives, d.carriedOut)
	g.Restored(ctx, t, base)
}

// dropper is a host with a bad network.
type dropper struct {
	g      *Guest
	t      *testing.T
	ctx    context.Context
	ledger *model.Ledger
	drops  int

	carriedOut int // calls that had worked although their answer was cut off

	mu   sync.Mutex // guards seen
	seen map[string]bool
	conn *brittle
	done chan struct{}
}

// brittle is a connection that can break, as when a host dies: between two
// frames, because what a peer has taken half of, nobody can know.
type brittle struct {
	vsockstream.Conn
	frame []byte // what is left of the one being read; used by Read alone

	mu     sync.Mutex // guards broken
	broken bool
}

func (b *brittle) Read(p []byte) (int, error) {
	if len(b.frame) == 0 {
		if err := b.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, b.frame)
	b.frame = b.frame[n:]
	return n, nil
}

// next reads a whole frame.
func (b *brittle) next() error {
	var header [10]byte
	if n, err := b.Conn.Read(header[:1]); n == 0 {
		return err
	}
	b.deadline(time.Time{})
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.broken {
			_ = b.SetReadDeadline(time.Unix(1, 0))
		}
	}()
	if _, err := io.ReadFull(b.Conn, header[1:]); err != nil {
		return err
	}
	b.frame = append(header[:], make([]byte, binary.BigEndian.Uint32(header[:]))...)
	_, err := io.ReadFull(b.Conn, b.frame[len(header):])
	return err
}

func (b *brittle) deadline(t time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = b.SetReadDeadline(t)
}

// snap breaks it. What has not been read yet never will be.
func (b *brittle) snap() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = true
	_ = b.SetReadDeadline(time.Unix(1, 0))
}

// subscribe reads events into the ledger, those that come twice because nobody
// knows whether they had arrived only once.
func (d *dropper) subscribe() {
	conn, err := d.g.VM.Dial(d.ctx, microvm.RPCPort)
	require.NoError(d.t, err)
	d.conn = &brittle{Conn: conn}
	client := ttrpc.NewClient(d.conn)
	stream, err := vmeventsapi.NewTTRPCEventsClient(client).Stream(d.ctx, &emptypb.Empty{})
	require.NoError(d.t, err)
	done := make(chan struct{})
	d.done = done
	go func() {
		defer close(done)
		for {
			env, err := stream.Recv()
			if err != nil {
				return
			}
			key, err := proto.MarshalOptions{Deterministic: true}.Marshal(env)
			if err != nil {
				return
			}
			d.mu.Lock()
			again := d.seen[string(key)]
			d.seen[string(key)] = true
			d.mu.Unlock()
			if id, _, err := describe(env); err == nil && !again && len(id) > 4 && id[:4] == "drop" {
				d.ledger.Add(env)
			}
		}
	}()
}

func (d *dropper) unsubscribe() {
	d.conn.snap()
	<-d.done
}

func (d *dropper) resubscribe() {
	d.unsubscribe()
	d.subscribe()
}

// cut makes a call on a connection of its own and cuts it at some time.
func (d *dropper) cut(call func(ctx context.Context, task taskv3.TTRPCTaskService) error) {
	client, err := d.g.VM.Client(d.ctx)
	require.NoError(d.t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = call(d.ctx, taskv3.NewTTRPCTaskClient(client))
	}()
	time.Sleep(time.Duration(rand.IntN(12_000)) * time.Microsecond)
	client.Close()
	<-ended
	d.drops++
}

// certainly cuts the call off and then makes it again, until it has worked or
// the answer is that it had.
func (d *dropper) certainly(what string, had func() bool, call func(ctx context.Context, task taskv3.TTRPCTaskService) error) {
	d.cut(call)
	deadline := time.Now().Add(time.Minute)
	for {
		err := call(d.ctx, d.g.Task)
		switch {
		case err == nil:
			return
		case had():
			d.carriedOut++
			return
		case time.Now().After(deadline):
			d.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(time.Millisecond) // what was cut off is still being taken back
	}
}

// life is a container with an exec, each call of which is cut off once.
func (d *dropper) life(n int) {
	id, code, execCode := fmt.Sprintf("drop%d", n), n%200, (n+50)%200
	r := &taskv3.CreateTaskRequest{ID: id, Rootfs: RootMounts()}
	script := fmt.Sprintf("mkfifo /tmp/end; read x < /tmp/end; exit %d", code)
	require.NoError(d.t, d.g.MakeBundle(d.ctx, r, marshal(d.t, Spec("/bin/sh", "-c", script))))
	state := func(exec string) tasktypes.Status {
		st, err := d.g.Task.State(d.ctx, &taskv3.StateRequest{ID: id, ExecID: exec})
		if err != nil {
			return tasktypes.Status_UNKNOWN
		}
		return st.Status
	}
	is := func(exec string, wanted ...tasktypes.Status) func() bool {
		return func() bool {
			s := state(exec)
			for _, w := range wanted {
				if s == w {
					return true
				}
			}
			return false
		}
	}
	gone := func(exec string) func() bool {
		return func() bool {
			_, err := d.g.Task.State(d.ctx, &taskv3.StateRequest{ID: id, ExecID: exec})
			return codeOf(err) == codes.NotFound
		}
	}
	const created, running, stopped = tasktypes.Status_CREATED, tasktypes.Status_RUNNING, tasktypes.Status_STOPPED
	d.certainly("create", is("", created), func(ctx context.Context, task taskv3.TTRPCTaskService) error {
		_, err := task.Create(ctx, proto.Clone(r).(*taskv3.CreateTaskRequest))
		return err
	})
	d.certainly("start", is("", running), func(ctx context.Context, task taskv3.TTRPCTaskService) error {
		_, err := task.Start(ctx, &taskv3.StartRequest{ID: id})
		return err
	})
	spec := marshal(d.t, Spec("/bin/sh", "-c", fmt.Sprintf("while ! test -p /tmp/end; do :; done; exit %d", execCode)).Process)
	d.certainly("exec", is("e", created), func(ctx context.Context, task taskv3.TTRPCTaskService) error {
		_, err := task.Exec(ctx, &taskv3.ExecProcessRequest{ID: id, ExecID: "e", Spec: &anypb.Any{Value: spec}})
		return err
	})
	d.certainly("start exec", is("e", running, stopped), func(ctx context.Context, task taskv3.TTRPCTaskService) error {
		_, err := task.Start(ctx, &taskv3.StartRequest{ID: id, ExecID: "e"})
		return err
	})
	wait := func(exec string, want int) {
		d.certainly("wait", func() bool { return false }, func(ctx context.Context, task taskv3.TTRPCTaskService) error {
			w, err := task.Wait(ctx, &taskv3.WaitRequest{ID: id, ExecID: exec})
			if err == nil && int(w.ExitStatus) != want {
				d.t.Errorf("wait %s %s: exit code %d, must be %d", id, exec, w.ExitStatus, want)
			}
			return err
		})
	}
	wait("e", execCode)
	d.certainly("delete exec", gone("e"), func(ctx context.Context, task taskv3.TTRPCTaskService) error {
		_, err := task.Delete(ctx, &taskv3.DeleteRequest{ID: id, ExecID: "e"})
		return err
	})
	// A Wait that is cut off while the process lives, and one across its end.
	d.cut(func(ctx context.Context, task taskv3.TTRPCTaskService) error {
		_, err := task.Wait(ctx, &taskv3.WaitRequest{ID: id})
		return err
	})
	require.Equal(d.t, running, state(""))
	end := marshal(d.t, Spec("/bin/sh", "-c", "echo > /tmp/end; sleep 1000").Process)
	_, err := d.g.Task.Exec(d.ctx, &taskv3.ExecProcessRequest{ID: id, ExecID: "end", Spec: &anypb.Any{Value: end}})
	require.NoError(d.t, err)
	_, err = d.g.Task.Start(d.ctx, &taskv3.StartRequest{ID: id, ExecID: "end"})
	require.NoError(d.t, err)
	wait("", code)
	d.certainly("delete", gone(""), func(ctx context.Context, task taskv3.TTRPCTaskService) error {
		_, err := task.Delete(ctx, &taskv3.DeleteRequest{ID: id})
		return err
	})
}
