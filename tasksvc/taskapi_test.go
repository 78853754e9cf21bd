package tasksvc

import (
	"strings"
	"sync"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Every method is there under both names, and says NotFound of what is not.
func TestTaskMethods(t *testing.T) {
	h := newHost(t)
	client := h.serve()
	for _, service := range []string{"containerd.task.v3.Task", "containerd.task.v2.Task"} {
		for method, x := range map[string]struct {
			req, resp proto.Message
			code      codes.Code
		}{
			"State":      {&taskv3.StateRequest{ID: "x"}, &taskv3.StateResponse{}, codes.NotFound},
			"Create":     {&taskv3.CreateTaskRequest{ID: "x", Bundle: "/nosuch"}, &taskv3.CreateTaskResponse{}, codes.InvalidArgument},
			"Start":      {&taskv3.StartRequest{ID: "x"}, &taskv3.StartResponse{}, codes.NotFound},
			"Delete":     {&taskv3.DeleteRequest{ID: "x"}, &taskv3.DeleteResponse{}, codes.NotFound},
			"Pids":       {&taskv3.PidsRequest{ID: "x"}, &taskv3.PidsResponse{}, codes.NotFound},
			"Pause":      {&taskv3.PauseRequest{ID: "x"}, &emptypb.Empty{}, codes.NotFound},
			"Resume":     {&taskv3.ResumeRequest{ID: "x"}, &emptypb.Empty{}, codes.NotFound},
			"Checkpoint": {&taskv3.CheckpointTaskRequest{ID: "x"}, &emptypb.Empty{}, codes.Unimplemented},
			"Kill":       {&taskv3.KillRequest{ID: "x", Signal: 9}, &emptypb.Empty{}, codes.NotFound},
			"Exec":       {&taskv3.ExecProcessRequest{ID: "x", ExecID: "e", Spec: mustAny(t, &specs.Process{Args: []string{"true"}, Cwd: "/"})}, &emptypb.Empty{}, codes.NotFound},
			"ResizePty":  {&taskv3.ResizePtyRequest{ID: "x"}, &emptypb.Empty{}, codes.NotFound},
			"CloseIO":    {&taskv3.CloseIORequest{ID: "x", Stdin: true}, &emptypb.Empty{}, codes.NotFound},
			"Update":     {&taskv3.UpdateTaskRequest{ID: "x", Resources: &anypb.Any{Value: []byte("{}")}}, &emptypb.Empty{}, codes.NotFound},
			"Wait":       {&taskv3.WaitRequest{ID: "x"}, &taskv3.WaitResponse{}, codes.NotFound},
			"Stats":      {&taskv3.StatsRequest{ID: "x"}, &taskv3.StatsResponse{}, codes.NotFound},
			"Connect":    {&taskv3.ConnectRequest{ID: "x"}, &taskv3.ConnectResponse{}, codes.OK},
			"Shutdown":   {&taskv3.ShutdownRequest{ID: "x"}, &emptypb.Empty{}, codes.OK},
		} {
			if method == "Shutdown" {
				continue // its effect is tested where there is a daemon to end
			}
			err := client.Call(h.ctx(), service, method, x.req, x.resp)
			require.Equal(t, x.code, status.Code(err), "%s.%s: %v", service, method, err)
		}
	}
}

// Wrong calls on a container that is there.
func TestTaskWrongCalls(t *testing.T) {
	h := newHost(t)
	h.running("c1", testSpec("sleep 1000"))
	code := func(err error) codes.Code { return status.Code(toStatus(err)) }
	_, err := h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.Equal(t, codes.FailedPrecondition, code(err))
	_, err = h.Resume(h.ctx(), &taskv3.ResumeRequest{ID: "c1"})
	require.Equal(t, codes.FailedPrecondition, code(err))
	_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: "c1"})
	require.Equal(t, codes.FailedPrecondition, code(err))
	_, err = h.ResizePty(h.ctx(), &taskv3.ResizePtyRequest{ID: "c1", Width: 1, Height: 1})
	require.Equal(t, codes.FailedPrecondition, code(err), "no terminal")
	for _, signal := range []uint32{0, 65, 1 << 31} {
		_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: signal})
		require.Equal(t, codes.InvalidArgument, code(err), signal)
	}
	for _, resources := range []*anypb.Any{nil, {Value: []byte("{")}, {Value: []byte(`{"pids":{"limit":"x"}}`)}} {
		_, err = h.Update(h.ctx(), &taskv3.UpdateTaskRequest{ID: "c1", Resources: resources})
		require.Equal(t, codes.InvalidArgument, code(err))
	}
	_, err = h.Update(h.ctx(), &taskv3.UpdateTaskRequest{ID: "c1", Resources: &anypb.Any{Value: []byte("{}")}})
	require.NoError(t, err)
	for _, spec := range []*anypb.Any{nil, {Value: []byte("{")}, {Value: []byte(`{"cwd":"/"}`)}} {
		_, err = h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: "c1", ExecID: "e", Spec: spec})
		require.Equal(t, codes.InvalidArgument, code(err))
	}
	_, err = h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c2", Bundle: h.bundle(testSpec("true")), Checkpoint: "/x"})
	require.Equal(t, codes.Unimplemented, code(err))
}

// The options of containerd's runc: what means something here is honoured, what
// cannot be is refused, the rest does not matter.
func TestRuncOptions(t *testing.T) {
	h := newHost(t)
	options := func(o *runcoptions.Options) *anypb.Any {
		a, err := containerdAny(o)
		require.NoError(t, err)
		return a
	}
	run := func(id string, o *anypb.Any) string {
		out := h.fifo(id)
		got := h.reader(out)
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: id, Stdout: out, Options: o,
			Bundle: h.bundle(testSpec("ls -lnL /proc/self/fd/1; cat /proc/keys /proc/self/status | head -40"))})
		require.NoError(t, err)
		_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: id})
		require.NoError(t, err)
		_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: id})
		require.NoError(t, err)
		h.delete(id)
		return got()
	}
	owner := func(out string) []string { return strings.Fields(out)[2:4] }
	require.Equal(t, []string{"0", "0"}, owner(run("none", nil)))
	require.Equal(t, []string{"0", "0"}, owner(run("ignored", options(&runcoptions.Options{BinaryName: "/nosuch/runc", Root: "/x", SystemdCgroup: true, ShimCgroup: "/y"}))))
	require.Equal(t, []string{"1234", "5678"}, owner(run("io", options(&runcoptions.Options{IoUid: 1234, IoGid: 5678}))))
	require.NotEmpty(t, run("keyring", options(&runcoptions.Options{NoNewKeyring: true})))
	for o, want := range map[*anypb.Any]codes.Code{
		options(&runcoptions.Options{NoPivotRoot: true}):                                codes.Unimplemented,
		{TypeUrl: "io.containerd.other.Options", Value: []byte("x")}:                    codes.InvalidArgument,
		{TypeUrl: "containerd.runc.v1.Options", Value: []byte("\xff\xff")}:              codes.InvalidArgument,
		{TypeUrl: "types.containerd.io/containerd.runc.v1.Options", Value: []byte{255}}: codes.InvalidArgument,
	} {
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "bad", Bundle: h.bundle(testSpec("true")), Options: o})
		require.Equal(t, want, status.Code(toStatus(err)), err)
	}
}

// Any number may wait, before and after the exit; Pids knows execs by name; a
// second Delete says NotFound.
func TestWaitersAndPids(t *testing.T) {
	h := newHost(t)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("sleep 1000 & sleep 1000; true"))})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	_, err = h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: "c1", ExecID: "e1", Spec: mustAny(t, &specs.Process{Args: []string{"/bin/sleep", "1000"}, Cwd: "/"})})
	require.NoError(t, err)
	started, err := h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1", ExecID: "e1"})
	require.NoError(t, err)
	names := map[uint32]string{}
	require.Eventually(t, func() bool {
		pids, err := h.Pids(h.ctx(), &taskv3.PidsRequest{ID: "c1"})
		require.NoError(t, err)
		clear(names)
		for _, p := range pids.Processes {
			names[p.Pid] = ""
			if p.Info != nil {
				d := new(runcoptions.ProcessDetails)
				require.NoError(t, p.Info.UnmarshalTo(d))
				names[p.Pid] = d.ExecID
			}
		}
		return len(names) == 4 // sh, its two children, the exec
	}, 10*time.Second, 5*time.Millisecond)
	require.Equal(t, "e1", names[started.Pid])

	var waiters sync.WaitGroup
	wait := func() {
		w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
		if err != nil || w.ExitStatus != 137 {
			t.Errorf("%v %v", w, err)
		}
	}
	for range 20 {
		waiters.Go(wait)
	}
	time.Sleep(10 * time.Millisecond)
	_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: uint32(unix.SIGKILL), All: true})
	require.NoError(t, err)
	waiters.Wait()
	wait()
	_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: 9})
	require.Equal(t, codes.NotFound, status.Code(toStatus(err)))
	h.delete("c1")
	_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: "c1"})
	require.Equal(t, codes.NotFound, status.Code(toStatus(err)))
}

// stdout and stderr by one fifo are one stream; without a reader of the other
// nothing waits; a child in the background delays nothing.
func TestStdioFifos(t *testing.T) {
	h := newHost(t)
	both := h.fifo("both")
	got := h.reader(both)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Stdout: both, Stderr: both, Bundle: h.bundle(testSpec("echo 1; echo 2 >&2; echo 3; sleep 1000 & exit 0"))})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	began := time.Now()
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	h.delete("c1")
	require.Equal(t, "1\n2\n3\n", got())
	require.Less(t, time.Since(began), 5*time.Second)

	// A fifo that nobody reads: what fits into it is its reader's, the exit is
	// told, and Delete comes back.
	_, err = h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c2", Stdout: h.fifo("dead"), Bundle: h.bundle(testSpec("head -c 30000 /dev/zero"))})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c2"})
	require.NoError(t, err)
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c2"})
	require.NoError(t, err)
	began = time.Now()
	h.delete("c2")
	require.Less(t, time.Since(began), 5*time.Second)
}
