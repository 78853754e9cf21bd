package tasksvc

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/sys"
)

// agent is a seccomp agent: it takes listeners and answers notifications.
type agent struct {
	t      *testing.T
	path   string
	socket *net.UnixListener
	states chan specs.ContainerProcessState
	work   sync.WaitGroup

	mu   sync.Mutex
	seen map[int]int // notifications by system call
}

// newAgent starts one. Calls that are not in errnos go on.
func newAgent(t *testing.T, errnos map[int]unix.Errno) *agent {
	a := &agent{t: t, path: filepath.Join(t.TempDir(), "agent"), states: make(chan specs.ContainerProcessState, 10), seen: map[int]int{}}
	var err error
	a.socket, err = net.ListenUnix("unix", &net.UnixAddr{Name: a.path, Net: "unix"})
	require.NoError(t, err)
	a.work.Go(func() {
		for {
			conn, err := a.socket.AcceptUnix()
			if err != nil {
				return
			}
			listener, err := a.take(conn)
			if err != nil {
				t.Error(err)
				return
			}
			a.work.Go(func() { a.serve(listener, errnos) })
		}
	})
	t.Cleanup(func() {
		a.socket.Close()
		a.work.Wait() // listeners end with the last process of their filter
	})
	return a
}

// take reads the one state of a connection, which must come with one fd and be
// the last thing on it.
func (a *agent) take(conn *net.UnixConn) (int, error) {
	defer conn.Close()
	buf, oob := make([]byte, 1<<16), make([]byte, 256)
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return 0, err
	}
	rest, err := io.ReadAll(conn)
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		return 0, errors.Join(err, errors.New("not one control message"))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, errors.Join(err, errors.New("not one descriptor"))
	}
	var state specs.ContainerProcessState
	if err := json.Unmarshal(append(buf[:n], rest...), &state); err != nil {
		return 0, err
	}
	a.states <- state
	return fds[0], nil
}

func (a *agent) serve(listener int, errnos map[int]unix.Errno) {
	defer unix.Close(listener)
	for {
		poll := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err == unix.EINTR {
			continue
		}
		if poll[0].Revents&unix.POLLIN == 0 { // hung up: nobody is under the filter
			return
		}
		n, err := nextNotification(listener)
		if err != nil {
			continue // killed meanwhile
		}
		a.mu.Lock()
		a.seen[int(n.nr)]++
		a.mu.Unlock()
		errno, decided := errnos[int(n.nr)]
		if !decided || errno != 0 { // else it is never answered
			_ = n.decide(listener, errno) // killed meanwhile
		}
	}
}

func (a *agent) state() specs.ContainerProcessState {
	a.t.Helper()
	select {
	case s := <-a.states:
		return s
	case <-time.After(10 * time.Second):
		a.t.Fatal("nothing was sent to the agent")
		panic("unreachable")
	}
}

// notifying is a profile that asks about mkdir, and about whatever a launch
// still has to do behind the filter, but write.
func notifying(path string) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, ListenerPath: path, ListenerMetadata: "for the agent",
		Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv},
		Syscalls: []specs.LinuxSyscall{{Action: specs.ActNotify, Names: []string{"mkdir", "mkdirat", "read", "close", "close_range", "rt_sigprocmask", "execve",
			"prctl", "setresuid", "setresgid", "setgroups", "capset", "chdir", "umask", "exit_group"}}},
	}
}

// mkdirs answers every way to make a directory with an errno.
func mkdirs(errno unix.Errno) map[int]unix.Errno {
	calls := map[int]unix.Errno{unix.SYS_MKDIRAT: errno}
	if runtime.GOARCH == "amd64" {
		calls[83] = errno // mkdir; arm64 has none
	}
	return calls
}

// TestNotify has an agent decide about a real container's system calls: its
// init's, an exec's and a hook's, whether the filter is loaded in Create or in
// Start.
func TestNotify(t *testing.T) {
	h := newHost(t)
	for name, edit := range map[string]func(*specs.Spec){
		"late":   func(s *specs.Spec) { s.Process.NoNewPrivileges = true },
		"early":  func(s *specs.Spec) { s.Process.NoNewPrivileges = false },
		"userns": func(s *specs.Spec) { s.Process.NoNewPrivileges = false; fullUserNS(s) },
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			a := newAgent(t, mkdirs(unix.EMLINK))
			left := h.nothingLeft()
			s := probeSpec()
			s.Annotations = map[string]string{"big": strings.Repeat("x", 100<<10)} // more than a socket takes at once
			s.Linux.Seccomp = notifying(a.path)
			s.Process.Args = []string{"/bin/probe", "try", "mkdir:/tmp/x"}
			proc := *s.Process
			edit(s)
			proc.NoNewPrivileges = s.Process.NoNewPrivileges
			s.Process.Args = []string{"/bin/sh", "-c", "/bin/probe try mkdir:/tmp/x; echo > /tmp/done; exec sleep 1000"}
			s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/mkdir", Args: []string{"mkdir", "/tmp/by-hook"}}}}
			bundle := h.probeBundle(s)
			out := h.fifo(name)
			read := h.reader(out)

			_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c", Bundle: bundle, Stdout: out})
			require.NoError(t, err)
			h.endLater("c")
			created, err := h.State(h.ctx(), &taskv3.StateRequest{ID: "c"})
			require.NoError(t, err)
			state := func(status specs.ContainerState) specs.State {
				return specs.State{Version: "1.3.0", ID: "c", Status: status, Pid: int(created.Pid), Bundle: bundle, Annotations: s.Annotations}
			}
			init := specs.ContainerProcessState{Version: "1.3.0", Fds: []string{"seccompFd"}, Pid: int(created.Pid), Metadata: "for the agent", State: state("created")}
			if name != "late" {
				init.State.Status = "creating"
				require.Equal(t, init, a.state())
			}
			// The hook's mkdir is asked about like the container's own.
			_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c"})
			require.ErrorContains(t, err, "startContainer hook 0, /bin/mkdir: exit status 1: mkdir: can't create directory '/tmp/by-hook': Too many links")
			hook := a.state()
			require.NotEqual(t, init.Pid, hook.Pid)
			require.Equal(t, state("created"), hook.State)
			h.delete("c")

			s.Hooks = nil
			bundle = h.probeBundle(s)
			_, err = h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c", Bundle: bundle, Stdout: out})
			require.NoError(t, err)
			_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c"})
			require.NoError(t, err)
			a.state()
			created, err = h.State(h.ctx(), &taskv3.StateRequest{ID: "c"})
			require.NoError(t, err)

			execOut := h.fifo(name + "exec")
			readExec := h.reader(execOut)
			h.startExec("c", "e", &proc, execOut)
			w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c", ExecID: "e"})
			require.NoError(t, err)
			require.Zero(t, w.ExitStatus)
			st, err := h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: "c", ExecID: "e"})
			require.NoError(t, err)
			init.Pid, init.State = int(st.Pid), state("running")
			require.Equal(t, init, a.state())
			require.JSONEq(t, `{"mkdir:/tmp/x":"EMLINK"}`, readExec())
			require.Eventually(t, func() bool {
				_, err := os.Stat(fmt.Sprintf("/proc/%d/root/tmp/done", created.Pid))
				return err == nil
			}, 10*time.Second, 5*time.Millisecond)
			_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c", Signal: 9})
			require.NoError(t, err)
			_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c"})
			require.NoError(t, err)
			h.delete("c")
			require.JSONEq(t, `{"mkdir:/tmp/x":"EMLINK"}`, read())
			a.mu.Lock()
			for _, nr := range []int{unix.SYS_READ, unix.SYS_RT_SIGPROCMASK, unix.SYS_EXECVE} {
				require.NotZero(t, a.seen[nr], nr)
			}
			require.Equal(t, name == "late", a.seen[unix.SYS_CAPSET] == 0)
			a.mu.Unlock()
			left()
		})
	}
	h.t = t
}

// TestNotifyWithoutAgent: without one that takes the listener nothing is
// started, and nothing stays; with one that never answers the process can be
// killed.
func TestNotifyWithoutAgent(t *testing.T) {
	h := newHost(t)
	left := h.nothingLeft()
	nobody := filepath.Join(t.TempDir(), "nobody")
	s := probeSpec()
	s.Linux.Seccomp = notifying(nobody)
	s.Process.NoNewPrivileges = false
	require.ErrorIs(t, h.refused(s, "to linux.seccomp.listenerPath: dial unix "+nobody+": connect: no such file or directory"), unix.ENOENT)
	left()

	s.Process.NoNewPrivileges = true
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c", Bundle: h.probeBundle(s)})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c"})
	require.ErrorIs(t, err, unix.ENOENT)
	h.delete("c")
	left()

	// One that is not there any more.
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: nobody, Net: "unix"})
	require.NoError(t, err)
	socket.SetUnlinkOnClose(false)
	socket.Close()
	s.Process.NoNewPrivileges = false
	require.ErrorIs(t, h.refused(s, "connection refused"), unix.ECONNREFUSED)
	left()

	idle := newAgent(t, mkdirs(0))
	s.Linux.Seccomp = notifying(idle.path)
	s.Process.Args = []string{"/bin/mkdir", "/tmp/x"}
	_, err = h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c", Bundle: h.probeBundle(s)})
	require.NoError(t, err)
	h.endLater("c")
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c"})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		idle.mu.Lock()
		defer idle.mu.Unlock()
		return idle.seen[unix.SYS_MKDIRAT]+idle.seen[83] > 0
	}, 10*time.Second, 5*time.Millisecond)
	_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c", Signal: 9})
	require.NoError(t, err)
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c"})
	require.NoError(t, err)
	require.Equal(t, uint32(137), w.ExitStatus)
	h.delete("c")
}

// TestNotifyExecWithoutAgent: the container goes on when one of its execs cannot
// be started.
func TestNotifyExecWithoutAgent(t *testing.T) {
	h := newHost(t)
	a := newAgent(t, nil)
	s := probeSpec()
	s.Linux.Seccomp = notifying(a.path)
	s.Process.Args = []string{"/bin/sleep", "1000"}
	proc := *s.Process
	h.running("c", s)
	a.socket.Close()
	for i, noNewPrivs := range []bool{true, false} {
		proc.NoNewPrivileges = noNewPrivs
		data, err := json.Marshal(&proc)
		require.NoError(t, err)
		id := string(rune('a' + i))
		_, err = h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: "c", ExecID: id, Spec: &anypb.Any{Value: data}})
		require.NoError(t, err)
		_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c", ExecID: id})
		require.ErrorIs(t, err, unix.ENOENT)
		_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: "c", ExecID: id})
		require.NoError(t, err)
	}
	st, err := h.State(h.ctx(), &taskv3.StateRequest{ID: "c"})
	require.NoError(t, err)
	require.Equal(t, Running.status(), st.Status)
}

// TestRefusedListeners: what could not be handed over is refused beforehand.
func TestRefusedListeners(t *testing.T) {
	for text, edit := range map[string]func(*specs.LinuxSeccomp){
		"SCMP_ACT_NOTIFY needs listenerPath":                          func(s *specs.LinuxSeccomp) { s.ListenerPath, s.ListenerMetadata = "", "" },
		"listenerMetadata is set without listenerPath":                func(s *specs.LinuxSeccomp) { s.ListenerPath, s.Syscalls = "", nil },
		`linux.seccomp.listenerPath "agent" is not an absolute path`:  func(s *specs.LinuxSeccomp) { s.ListenerPath = "agent" },
		"has 109 bytes; a unix socket's has at most 107":              func(s *specs.LinuxSeccomp) { s.ListenerPath = "/" + strings.Repeat("a", 108) },
		"SCMP_ACT_NOTIFY for write would stop the runtime itself":     func(s *specs.LinuxSeccomp) { s.Syscalls[0].Names = []string{"write"} },
		"SCMP_ACT_NOTIFY would stop the runtime itself before it has": func(s *specs.LinuxSeccomp) { s.DefaultAction = specs.ActNotify },
		`seccomp: unknown flag "SECCOMP_FILTER_FLAG_NEW_LISTENER"`:    func(s *specs.LinuxSeccomp) { s.Flags = []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_NEW_LISTENER"} },
	} {
		s := testSpec("true")
		s.Linux.Seccomp = notifying("/run/agent")
		edit(s.Linux.Seccomp)
		_, err := compileBytes(t, s)
		require.ErrorIs(t, err, sys.ErrInvalid, text)
		require.ErrorContains(t, err, text)
	}
	// Without the action the path means nothing.
	s := testSpec("true")
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "nowhere", ListenerMetadata: "x"}
	pl, err := compileBytes(t, s)
	require.NoError(t, err)
	require.Nil(t, pl.afterStartGate)
	require.NotContains(t, pl.program.String(), gateListener)
	require.NoError(t, pl.program.Close())
}

// TestStrictSeccomp: filters that forbid what a launch does before it is over do
// not break it: getcwd, which a check needs, and calls newer than the profile.
func TestStrictSeccomp(t *testing.T) {
	h := newHost(t)
	for name, noNewPrivs := range map[string]bool{"late": true, "early": false} {
		s := probeSpec()
		s.Process.NoNewPrivileges, s.Process.Cwd = noNewPrivs, "/tmp"
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow,
			Syscalls: []specs.LinuxSyscall{{Action: specs.ActErrno, Names: []string{"getcwd", "close_range", "dup3", "mount", "openat2", "pivot_root", "getdents64"}}}}
		require.Equal(t, map[string]string{"mkdir:x": "ok", "mount": "EPERM"}, h.attempts(s, "mkdir:x", "mount"), name)
	}
}

// TestUnknownCapabilities: they are left out, and the log says so.
func TestUnknownCapabilities(t *testing.T) {
	s := testSpec("true")
	s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_FLY")
	pl, err := compileBytes(t, s)
	require.NoError(t, err)
	require.Equal(t, []string{"process.capabilities.bounding: CAP_FLY is left out: there is no such capability"}, pl.warnings)
	require.NoError(t, pl.program.Close())
}
