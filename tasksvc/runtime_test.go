package tasksvc

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	runtimeapi "vminit/api/services/runtime/v1"
	"vminit/internal/sys"
)

// runner runs execs in container c1 by RunExec.
func (h *host) runner() func(ctx context.Context, exec, out string, args ...string) (*taskv3.DeleteResponse, error) {
	r := NewRuntime(h.Service, false)
	return func(ctx context.Context, exec, out string, args ...string) (*taskv3.DeleteResponse, error) {
		spec, err := json.Marshal(&specs.Process{Args: args, Cwd: "/tmp", Env: []string{"PATH=/bin"}})
		require.NoError(h.t, err)
		return r.RunExec(ctx, &taskv3.ExecProcessRequest{ID: "c1", ExecID: exec, Spec: &anypb.Any{Value: spec}, Stdout: out})
	}
}

// One call does what Exec, Start, Wait and Delete do, with their events, and
// answers when the output is out.
func TestRunExec(t *testing.T) {
	h := newHost(t)
	h.started("c1", "sleep 1000")
	sub := h.events.Subscribe()
	defer sub.Close()
	out := h.fifo("out")
	got := h.reader(out)
	run := h.runner()
	exit, err := run(h.ctx(), "e1", out, "/bin/sh", "-c", "pwd; hostname; exit 3")
	require.NoError(t, err)
	require.Equal(t, uint32(3), exit.ExitStatus)
	require.NotZero(t, exit.Pid)
	require.WithinDuration(t, time.Now(), exit.ExitedAt.AsTime(), 10*time.Second)
	require.Equal(t, "/tmp\nbox\n", got())
	require.Equal(t, []string{"/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"}, topics(sub))
	_, err = h.State(h.ctx(), &taskv3.StateRequest{ID: "c1", ExecID: "e1"})
	require.ErrorIs(t, err, sys.ErrNotFound)
	exit, err = run(h.ctx(), "e1", "", "/bin/true") // the id is free again
	require.NoError(t, err)
	require.Zero(t, exit.ExitStatus)
	h.killed("c1")
	h.delete("c1")
}

// What cannot be run is told as the single calls tell it, and leaves nothing.
func TestRunExecRefused(t *testing.T) {
	h := newHost(t)
	run := h.runner()
	_, err := run(h.ctx(), "e1", "", "/bin/true")
	require.ErrorIs(t, err, sys.ErrNotFound)
	h.started("c1", "sleep 1000")
	for range 2 {
		_, err = run(h.ctx(), "e1", "", "nosuchcmd")
		require.EqualError(t, err, `exec "nosuchcmd": executable file not found in $PATH`)
		_, err = run(h.ctx(), "e1", h.fifos+"/nosuch", "/bin/true")
		require.ErrorContains(t, err, "nosuch")
	}
	_, err = run(h.ctx(), "no/id", "", "/bin/true")
	require.ErrorIs(t, err, sys.ErrInvalid)
	require.Empty(t, h.containers[containerKey{namespaceOf(h.ctx()), "c1"}].execs)

	h.promise("c1", "taken", `["/bin/true"]`)
	_, err = run(h.ctx(), "taken", "", "/bin/true")
	require.ErrorIs(t, err, sys.ErrExists)
	_, err = h.State(h.ctx(), &taskv3.StateRequest{ID: "c1", ExecID: "taken"})
	require.NoError(t, err, "it belongs to another")
	h.killed("c1")
	h.delete("c1")
}

// While it runs it is an exec like any other, over the wire too; and it outlives
// a call that gives up.
func TestRunExecMeanwhile(t *testing.T) {
	h := newHost(t)
	h.started("c1", "sleep 1000")
	run := h.runner()
	client := runtimeapi.NewTTRPCRuntimeClient(h.serve(NewRuntime(h.Service, false).Register))
	kill := func(exec string) {
		require.Eventually(t, func() bool {
			_, err := h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", ExecID: exec, Signal: uint32(unix.SIGTERM)})
			return err == nil
		}, 10*time.Second, time.Millisecond)
	}
	killed := make(chan struct{})
	go func() { kill("e1"); close(killed) }()
	exit, err := client.RunExec(h.ctx(), &taskv3.ExecProcessRequest{ID: "c1", ExecID: "e1", Spec: mustAny(t, &specs.Process{Args: []string{"/bin/sleep", "1000"}, Cwd: "/"})})
	require.NoError(t, err)
	require.Equal(t, 128+uint32(unix.SIGTERM), exit.ExitStatus)
	<-killed

	short, cancel := context.WithTimeout(h.ctx(), 50*time.Millisecond)
	defer cancel()
	_, err = run(short, "e2", "", "/bin/sleep", "1000")
	require.Equal(t, codes.DeadlineExceeded, status.Code(toStatus(err)))
	kill("e2")
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1", ExecID: "e2"})
	require.NoError(t, err)
	require.Equal(t, 128+uint32(unix.SIGTERM), w.ExitStatus)
	_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: "c1", ExecID: "e2"})
	require.NoError(t, err)

	// The container's end is the exec's.
	go h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: uint32(unix.SIGKILL)})
	exit, err = run(h.ctx(), "e3", "", "/bin/sleep", "1000")
	if err == nil {
		require.Equal(t, 128+uint32(unix.SIGKILL), exit.ExitStatus)
	} else { // it came too late
		require.ErrorIs(t, err, sys.ErrState)
	}
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	h.delete("c1")
}

// The last exec's process is kept as it was read: one that is sent again is the
// same, another is not.
func TestExecAgain(t *testing.T) {
	h := newHost(t)
	h.started("c1", "sleep 1000")
	c := h.containers[containerKey{"default", "c1"}]
	for step, terminal := range []bool{false, true, false} {
		for i, word := range []string{"one", "one", "two"} {
			out, code := h.exec("c1", fmt.Sprintf("e%d-%d", step, i), "echo "+word+"; test -t 1; exit $?", terminal)
			require.Equal(t, word, strings.TrimSpace(out))
			require.Equal(t, !terminal, code == 1)
		}
	}
	last := c.lastExec
	require.NotNil(t, last)
	long := strings.Repeat("x", maxKeptExec)
	exit, err := h.runner()(h.ctx(), "e", "", "/bin/true", long)
	require.NoError(t, err)
	require.Zero(t, exit.ExitStatus)
	require.Same(t, last, c.lastExec, "it is too long to be kept")
	h.killed("c1")
	h.delete("c1")
}

// A stream stays open until its reader has closed it: some backends throw away
// what has not been read of a closed one.
func TestRunExecStream(t *testing.T) {
	h := newHost(t)
	give := h.hub()
	h.started("c1", "sleep 1000")
	uri, conn := give()
	_, err := h.runner()(h.ctx(), "e1", "stream://"+strings.TrimPrefix(uri, schemeFDs), "/bin/sh", "-c", "echo last words")
	require.NoError(t, err)
	time.Sleep(20 * time.Millisecond)
	_, err = conn.Write([]byte("x")) // EPIPE if it was closed
	require.NoError(t, err)
	got, err := io.ReadAll(conn)
	require.NoError(t, err)
	require.Equal(t, "last words\n", string(got))
	_, _, claimed := h.cfg.Streams.Stats()
	require.Equal(t, 1, claimed)
	conn.Close()
	require.Eventually(t, func() bool {
		_, unclaimed, claimed := h.cfg.Streams.Stats()
		return unclaimed+claimed == 0
	}, 5*time.Second, time.Millisecond)
	h.killed("c1")
	h.delete("c1")
}
