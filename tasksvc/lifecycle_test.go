package tasksvc

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
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

func TestLifecycle(t *testing.T) {
	h := newHost(t)
	sub := h.events.Subscribe()
	defer sub.Close()
	out, errs, code := h.run("c1", testSpec("echo out $$ $GREETING; hostname; echo err >&2; exit 7"))
	require.Equal(t, "out 1 hello\nbox\n", out)
	require.Equal(t, "err\n", errs)
	require.Equal(t, uint32(7), code)
	require.Equal(t, []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}, topics(sub))
}

func TestStartFailure(t *testing.T) {
	h := newHost(t)
	sub := h.events.Subscribe()
	defer sub.Close()
	spec := testSpec("")
	spec.Process.Args = []string{"nosuchcmd"}
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(spec)})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.EqualError(t, err, `exec "nosuchcmd": executable file not found in $PATH`)
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	h.delete("c1")
	require.Equal(t, []string{"/tasks/create", "/tasks/delete"}, topics(sub), "no exit of what was never started")
}

// Deleting at once is right after a start that failed, too.
func TestExecStartFailure(t *testing.T) {
	h := newHost(t)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("sleep 1000"))})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	for range 20 {
		_, err = h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: "c1", ExecID: "e1", Spec: &anypb.Any{Value: []byte(`{"cwd":"/","args":["nosuchcmd"]}`)}})
		require.NoError(t, err)
		_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1", ExecID: "e1"})
		require.ErrorContains(t, err, "executable file not found")
		_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: "c1", ExecID: "e1"})
		require.NoError(t, err)
	}
	_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: uint32(unix.SIGKILL)})
	require.NoError(t, err)
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	h.delete("c1")
}

func TestDeleteOfCreated(t *testing.T) {
	h := newHost(t)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("true"))})
	require.NoError(t, err)
	_, err = h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: "/nosuch"})
	require.ErrorIs(t, err, sys.ErrExists)
	h.delete("c1")
	_, err = h.State(h.ctx(), &taskv3.StateRequest{ID: "c1"})
	require.ErrorIs(t, err, sys.ErrNotFound)
}

func TestStdin(t *testing.T) {
	h := newHost(t)
	in, out := h.fifo("in"), h.fifo("out")
	got := h.reader(out)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("wc -c")), Stdin: in, Stdout: out})
	require.NoError(t, err)
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	require.NoError(t, err)
	go func() {
		io.Copy(w, strings.NewReader(strings.Repeat("x", 200000)))
		w.Close()
		_, err := h.CloseIO(h.ctx(), &taskv3.CloseIORequest{ID: "c1", Stdin: true})
		require.NoError(t, err)
	}()
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	require.Equal(t, "200000\n", got())
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	h.delete("c1")
}

func (h *host) exec(id, exec, script string, terminal bool) (string, uint32) {
	out := h.fifo(id + exec)
	got := h.reader(out)
	spec, err := json.Marshal(&specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/tmp", Env: []string{"PATH=/bin"}, Terminal: terminal})
	require.NoError(h.t, err)
	_, err = h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: id, ExecID: exec, Spec: &anypb.Any{Value: spec}, Stdout: out, Terminal: terminal})
	require.NoError(h.t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: id, ExecID: exec})
	require.NoError(h.t, err)
	if terminal {
		_, err = h.ResizePty(h.ctx(), &taskv3.ResizePtyRequest{ID: id, ExecID: exec, Width: 133, Height: 44})
		require.NoError(h.t, err)
	}
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: id, ExecID: exec})
	require.NoError(h.t, err)
	_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: id, ExecID: exec})
	require.NoError(h.t, err)
	return got(), w.ExitStatus
}

func TestExec(t *testing.T) {
	h := newHost(t)
	sub := h.events.Subscribe()
	defer sub.Close()
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("sleep 1000"))})
	require.NoError(t, err)
	_, err = h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: "c1", ExecID: "early", Spec: &anypb.Any{Value: []byte(`{"cwd":"/","args":["true"]}`)}})
	require.ErrorIs(t, err, sys.ErrState)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	out, code := h.exec("c1", "e1", `pwd; hostname; until [ "$(cat /proc/1/comm)" = sleep ]; do :; done; cat /proc/1/comm; exit 3`, false)
	require.Equal(t, "/tmp\nbox\nsleep\n", out)
	require.Equal(t, uint32(3), code)
	out, code = h.exec("c1", "e2", "sleep 0.3; tty; stty size", true)
	require.Equal(t, "/dev/pts/0\r\n44 133\r\n", out)
	require.Zero(t, code)
	pids, err := h.Pids(h.ctx(), &taskv3.PidsRequest{ID: "c1"})
	require.NoError(t, err)
	require.Len(t, pids.Processes, 1)
	_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: "c1"})
	require.ErrorIs(t, err, sys.ErrState)

	// An exec that is alive when init dies: its exit comes first.
	_, err = h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: "c1", ExecID: "e3", Spec: &anypb.Any{Value: []byte(`{"cwd":"/","args":["/bin/sleep","1000"]}`)}})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1", ExecID: "e3"})
	require.NoError(t, err)
	_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: uint32(unix.SIGKILL)})
	require.NoError(t, err)
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	require.Equal(t, uint32(137), w.ExitStatus)
	h.delete("c1")
	require.Equal(t, []string{"/tasks/create", "/tasks/start", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit", "/tasks/exec-added", "/tasks/exec-started", "/tasks/exit",
		"/tasks/exec-added", "/tasks/exec-started", "/tasks/exit", "/tasks/exit", "/tasks/delete"}, topics(sub))
}

func TestTerminal(t *testing.T) {
	h := newHost(t)
	out := h.fifo("out")
	got := h.reader(out)
	spec := testSpec("tty; stty size; ls -l /dev/console | head -c 10; echo; exit 4")
	spec.Process.Terminal, spec.Process.ConsoleSize = true, &specs.Box{Height: 50, Width: 140}
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(spec), Stdout: out, Terminal: true})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	require.Equal(t, uint32(4), w.ExitStatus)
	require.Equal(t, "/dev/pts/0\r\n50 140\r\ncrw--w----\r\n", got())
	h.delete("c1")
}

func TestPause(t *testing.T) {
	h := newHost(t)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("sleep 1000"))})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	_, err = h.Pause(h.ctx(), &taskv3.PauseRequest{ID: "c1"})
	require.NoError(t, err)
	st, err := h.State(h.ctx(), &taskv3.StateRequest{ID: "c1"})
	require.NoError(t, err)
	require.Equal(t, tasktypes.Status_PAUSED, st.Status)
	_, err = h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: "c1", ExecID: "e", Spec: &anypb.Any{Value: []byte(`{"cwd":"/","args":["true"]}`)}})
	require.ErrorIs(t, err, sys.ErrState)
	_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: 9})
	require.NoError(t, err)
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	h.delete("c1")
}

func TestManyAtOnceLeaveNothing(t *testing.T) {
	h := newHost(t)
	h.run("warmup", testSpec("true"))
	fds, mounts := countFds(t), countMounts(t)
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			out, _, code := h.run(fmt.Sprintf("c%d", i), testSpec(fmt.Sprintf("echo %d; exit %d", i, i)))
			if out != fmt.Sprintf("%d\n", i) || code != uint32(i) {
				t.Errorf("container %d: %q %d", i, out, code)
			}
		})
	}
	wg.Wait()
	require.Eventually(t, func() bool { return countFds(t) <= fds }, 5*time.Second, 10*time.Millisecond, "fds: %d, were %d", countFds(t), fds)
	require.Equal(t, mounts, countMounts(t))
	require.Zero(t, h.cfg.Launcher.Children())
}

func countFds(t testing.TB) int {
	e, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(e)
}

func countMounts(t testing.TB) int {
	b, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	return strings.Count(string(b), "\n")
}

// process.cwd is made if it is missing, also behind a link, as runc and crun do;
// for an exec it is not.
func TestWorkingDirectory(t *testing.T) {
	h := newHost(t)
	for cwd, want := range map[string]string{"/work/deep": "/work/deep 755\n", "/tmp/link/d": "/work/d 755\n", "/etc": "/etc 755\n"} {
		spec := testSpec("echo $(pwd -P) $(stat -c %a .)")
		spec.Process.Cwd, spec.Process.Args[0] = cwd, "/bin/sh"
		dir := h.bundle(spec)
		require.NoError(t, os.Symlink("/work", dir+"/rootfs/tmp/link"))
		require.NoError(t, os.Symlink("busybox", dir+"/rootfs/bin/stat"))
		out := h.fifo("out" + strings.ReplaceAll(cwd, "/", "-"))
		got := h.reader(out)
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: dir, Stdout: out})
		require.NoError(t, err)
		_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
		require.NoError(t, err)
		_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
		require.NoError(t, err)
		require.Equal(t, want, got())
		h.delete("c1")
	}
	h.started("c1", "sleep 1000")
	_, err := h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: "c1", ExecID: "e", Spec: &anypb.Any{Value: []byte(`{"cwd":"/nosuch","args":["true"]}`)}})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1", ExecID: "e"})
	require.ErrorContains(t, err, `change to working directory "/nosuch": no such file or directory`)
	h.killed("c1")
	h.delete("c1")
}
