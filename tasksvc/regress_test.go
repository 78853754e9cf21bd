package tasksvc

import (
	"errors"
	"slices"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/sys"
)

// What TestModel has found, each by itself.

// A container with execs that were added and never started can be deleted, and
// who waits for one of those is told that it will never run.
func TestDeleteWithPromisedExecs(t *testing.T) {
	h := newHost(t)
	h.started("c1", "sleep 1000")
	for _, id := range []string{"e1", "e2"} {
		h.promise("c1", id, `["true"]`)
	}
	waited := make(chan error, 1)
	ctx := h.ctx()
	go func() {
		_, err := h.Wait(ctx, &taskv3.WaitRequest{ID: "c1", ExecID: "e1"})
		waited <- err
	}()
	h.killed("c1")
	began := time.Now()
	h.delete("c1")
	require.Less(t, time.Since(began), 5*time.Second)
	require.NoError(t, <-waited)
}

// A start that failed is final, and known to be when it is answered.
func TestSecondStart(t *testing.T) {
	h := newHost(t)
	h.started("c1", "sleep 1000")
	for range 20 {
		spec := testSpec("")
		spec.Process.Args = []string{"nosuchcmd"}
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "bad", Bundle: h.bundle(spec)})
		require.NoError(t, err)
		h.promise("c1", "bad", `["nosuchcmd"]`)
		for id, exec := range map[string]string{"bad": "", "c1": "bad"} {
			_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: id, ExecID: exec})
			require.ErrorContains(t, err, "executable file not found")
			_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: id, ExecID: exec})
			require.ErrorIs(t, err, sys.ErrState)
			st, err := h.State(h.ctx(), &taskv3.StateRequest{ID: id, ExecID: exec})
			require.NoError(t, err)
			require.Equal(t, tasktypes.Status_STOPPED, st.Status)
			_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: id, ExecID: exec})
			require.NoError(t, err)
		}
	}
	h.killed("c1")
	h.delete("c1")
}

// What was killed before it was started cannot be started: FailedPrecondition,
// no start, no exit, but a delete.
func TestStartOfKilled(t *testing.T) {
	h := newHost(t)
	sub := h.events.Subscribe()
	defer sub.Close()
	for _, sig := range []uint32{9, 15} {
		spec := testSpec("sleep 1000")
		spec.Linux.Namespaces = spec.Linux.Namespaces[1:] // PID 1 of one would not mind a SIGTERM
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(spec)})
		require.NoError(t, err)
		_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: sig})
		require.NoError(t, err)
		ran := []string{}
		if sig == 9 {
			<-h.containers[containerKey{"default", "c1"}].init.exited
			_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
			require.ErrorIs(t, err, sys.ErrState)
		} else { // pending until the program is loaded, which cannot be told from what comes after
			_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
			require.NoError(t, err)
			ran = []string{"/tasks/start", "/tasks/exit"}
		}
		w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
		require.NoError(t, err)
		require.Equal(t, 128+sig, w.ExitStatus)
		h.delete("c1")
		require.Equal(t, slices.Concat([]string{"/tasks/create"}, ran, []string{"/tasks/delete"}), topics(sub))
	}
}

// started is a container that runs a script.
func (h *host) started(id, script string) {
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: id, Bundle: h.bundle(testSpec(script))})
	require.NoError(h.t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: id})
	require.NoError(h.t, err)
}

// promise adds an exec and does not start it.
func (h *host) promise(id, exec, args string) {
	_, err := h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: id, ExecID: exec, Spec: &anypb.Any{Value: []byte(`{"cwd":"/","args":` + args + `}`)}})
	require.NoError(h.t, err)
}

// killed ends a container's init.
func (h *host) killed(id string) {
	_, err := h.Kill(h.ctx(), &taskv3.KillRequest{ID: id, Signal: 9})
	require.NoError(h.t, err)
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: id})
	require.NoError(h.t, err)
}

// An exec that is started while init is ending, which takes as long as any
// process of its pid namespace has not been reaped, is told so.
func TestStartInDying(t *testing.T) {
	h := newHost(t)
	h.started("c1", "sleep 1000")
	h.promise("c1", "held", `["sleep","1000"]`)
	_, err := h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1", ExecID: "held"})
	require.NoError(t, err)
	h.promise("c1", "before", `["true"]`)
	c := h.containers[containerKey{"default", "c1"}]
	held, letGo := make(chan struct{}), make(chan struct{})
	go c.execs["held"].handle.WhileAlive(func(int) error { // it is not reaped meanwhile
		close(held)
		<-letGo
		return nil
	})
	<-held
	_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: 9})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		_, err := openRoot(c.init.handle)
		return errors.Is(err, sys.ErrState)
	}, 10*time.Second, time.Millisecond)
	h.promise("c1", "home", `["true"]`) // looks HOME up, in a root that is gone
	for _, id := range []string{"before", "home"} {
		_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1", ExecID: id})
		require.ErrorIs(t, err, sys.ErrState, "%s: %v", id, err)
	}
	require.False(t, c.init.handle.Reaped(), "it was ending all the time")
	close(letGo)
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	require.Equal(t, uint32(137), w.ExitStatus)
	h.delete("c1")
}

// Init in the pid namespace of another container is not process 1 there: what it
// leaves behind, execs included, does not end with it by itself, and its exit
// would wait for theirs.
func TestExitInJoinedPIDNamespace(t *testing.T) {
	h := newHost(t)
	h.started("holder", "sleep 1000")
	spec := testSpec("sleep 1000 & cat; exit 7")
	joinAll(spec, h.containers[containerKey{"default", "holder"}].init.pid(), specs.PIDNamespace)
	stdin := h.fifo("stdin")
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(spec), Stdin: stdin})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	h.promise("c1", "e", `["/bin/sleep","1000"]`)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1", ExecID: "e"})
	require.NoError(t, err)
	_, err = h.CloseIO(h.ctx(), &taskv3.CloseIORequest{ID: "c1", Stdin: true})
	require.NoError(t, err)
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	require.Equal(t, uint32(7), w.ExitStatus)
	w, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1", ExecID: "e"})
	require.NoError(t, err)
	require.Equal(t, 128+uint32(unix.SIGKILL), w.ExitStatus)
	require.Eventually(t, func() bool {
		r, err := h.Pids(h.ctx(), &taskv3.PidsRequest{ID: "c1"})
		return err == nil && len(r.Processes) == 0
	}, 5*time.Second, time.Millisecond)
	h.delete("c1")
	h.killed("holder")
	h.delete("holder")
}

// A container that waits for its start ends by the signals that ask for it, though
// the kernel keeps them from process 1 of a pid namespace.
func TestKillCreated(t *testing.T) {
	h := newHost(t)
	for _, sig := range asksForEnd {
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("sleep 1000"))})
		require.NoError(t, err)
		for _, harmless := range []unix.Signal{unix.SIGCHLD, unix.SIGUSR1} { // the second is the program's affair
			_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: uint32(harmless)})
			require.NoError(t, err)
		}
		st, err := h.State(h.ctx(), &taskv3.StateRequest{ID: "c1"})
		require.NoError(t, err)
		require.Equal(t, tasktypes.Status_CREATED, st.Status)
		_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: uint32(sig)})
		require.NoError(t, err)
		w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
		require.NoError(t, err)
		require.Equal(t, 128+uint32(unix.SIGKILL), w.ExitStatus)
		_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
		require.ErrorIs(t, err, sys.ErrState)
		h.delete("c1")
	}
}
