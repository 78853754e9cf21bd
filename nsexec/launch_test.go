package nsexec

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func soon() time.Time { return time.Now().Add(20 * time.Second) }

var shared = sync.OnceValues(NewLauncher)

func launcher(t testing.TB) *Launcher {
	l, err := shared()
	require.NoError(t, err)
	return l
}

func plainProcess(args ...string) *specs.Process {
	return &specs.Process{Cwd: "/", Args: args, Env: []string{"PATH=/usr/bin:/bin"}, User: specs.User{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}}
}

// bare compiles a process without namespaces whose three stdio fds are given.
func bare(t testing.TB, proc *specs.Process, in, out, errw *os.File, gate string) *Program {
	p, err := NewProgram()
	require.NoError(t, err)
	io := p.SetupStdio()
	p.Bind(io[0], int(in.Fd()))
	p.Bind(io[1], int(out.Fd()))
	p.Bind(io[2], int(errw.Fd()))
	p.Finish(Finish{Process: proc, Gate: gate})
	require.NoError(t, p.Err())
	return p
}

func devNull(t testing.TB) *os.File {
	f, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func wait(t testing.TB, p *Process) ExitStatus {
	select {
	case <-p.Done():
	case <-time.After(20 * time.Second):
		t.Fatalf("process %d does not end", p.PID())
	}
	require.NoError(t, p.Close())
	return p.Exit()
}

func TestLaunchOutputAndExitCode(t *testing.T) {
	requireRoot(t)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	null := devNull(t)
	p := bare(t, plainProcess("sh", "-c", "echo out; ls /proc/self/fd | tr '\\n' ' '; exit 7"), null, w, null, "")
	c, err := launcher(t).Start(Launch{Program: p, Cgroup: -1, PIDNS: -1})
	require.NoError(t, err)
	w.Close()
	require.NoError(t, c.AwaitExec(soon()))
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "out\n0 1 2 3 ", string(out), "the last one is ls's own")
	require.Equal(t, 7, wait(t, c.Process).Code)
}

func TestGateHolds(t *testing.T) {
	requireRoot(t)
	null := devNull(t)
	c, err := launcher(t).Start(Launch{Program: bare(t, plainProcess("true"), null, null, null, "start"), Cgroup: -1, PIDNS: -1})
	require.NoError(t, err)
	_, err = c.AwaitGate(soon())
	require.NoError(t, err)
	select {
	case <-c.Done():
		t.Fatal("passed the gate by itself")
	case <-time.After(50 * time.Millisecond):
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", c.PID()))
	require.NoError(t, err)
	self, _ := os.Readlink("/proc/self/exe")
	require.Equal(t, self, exe)
	require.NoError(t, c.Open())
	require.NoError(t, c.AwaitExec(soon()))
	require.Zero(t, wait(t, c.Process).Code)
}

func TestAbandonedChildEnds(t *testing.T) {
	requireRoot(t)
	null := devNull(t)
	c, err := launcher(t).Start(Launch{Program: bare(t, plainProcess("true"), null, null, null, "start"), Cgroup: -1, PIDNS: -1})
	require.NoError(t, err)
	_, err = c.AwaitGate(soon())
	require.NoError(t, err)
	c.Abandon()
	require.Equal(t, 1, wait(t, c.Process).Code)
}

func TestLaunchErrors(t *testing.T) {
	requireRoot(t)
	null := devNull(t)
	dir := t.TempDir()
	noexec := dir + "/noexec"
	require.NoError(t, os.WriteFile(noexec, []byte("x"), 0o644))
	require.NoError(t, os.WriteFile(dir+"/uninterpreted", []byte("#!/nosuch/sh\n"), 0o755))
	for _, tc := range []struct {
		name string
		edit func(*specs.Process)
		want string
		is   error
	}{
		{"not in path", func(p *specs.Process) { p.Args = []string{"nosuchcmd"} }, `exec "nosuchcmd": executable file not found in $PATH`, unix.ENOENT},
		{"no such file", func(p *specs.Process) { p.Args = []string{"/nosuch/cmd"} }, `exec "/nosuch/cmd": no such file or directory (execve)`, unix.ENOENT},
		{"not executable", func(p *specs.Process) { p.Args = []string{noexec} }, `permission denied (execve)`, unix.EACCES},
		{"not executable in path", func(p *specs.Process) {
			p.Args, p.Env = []string{"noexec"}, []string{"PATH=/nosuch:" + noexec[:len(noexec)-7] + ":/bin"}
		}, `exec "noexec": permission denied (execve)`, unix.EACCES},
		{"no interpreter", func(p *specs.Process) {
			p.Args, p.Env = []string{"uninterpreted"}, []string{"PATH=/nosuch:" + noexec + ":" + dir + ":/bin"}
		}, `exec "` + dir + `/uninterpreted": no such file or directory: its interpreter or loader is missing`, unix.ENOENT},
		{"cwd", func(p *specs.Process) { p.Cwd = "/nosuch" }, `change to working directory "/nosuch": no such file or directory (chdir)`, unix.ENOENT},
		{"too long", func(p *specs.Process) { p.Args = []string{"true", strings.Repeat("x", 200<<10)} }, `argument list too long (execve)`, unix.E2BIG},
	} {
		t.Run(tc.name, func(t *testing.T) {
			proc := plainProcess("true")
			tc.edit(proc)
			c, err := launcher(t).Start(Launch{Program: bare(t, proc, null, null, null, ""), Cgroup: -1, PIDNS: -1})
			require.NoError(t, err)
			err = c.AwaitExec(soon())
			require.ErrorContains(t, err, tc.want)
			require.ErrorIs(t, err, tc.is)
			var step *StepError
			require.True(t, errors.As(err, &step))
			require.Equal(t, 127, wait(t, c.Process).Code)
		})
	}
}

func TestUnreachableWorkingDirectory(t *testing.T) {
	requireRoot(t)
	null := devNull(t)
	p, err := NewProgram()
	require.NoError(t, err)
	for _, r := range p.SetupStdio() {
		p.Bind(r, int(null.Fd()))
	}
	p.Call(unix.SYS_OPENAT, Int(unix.AT_FDCWD), p.Str("/tmp"), Int(unix.O_PATH), Int(0)).Store(p.NewReg("tmp"))
	p.Call(unix.SYS_CHROOT, p.Str(t.TempDir()))
	p.Call(unix.SYS_CHDIR, p.Str("/"))
	p.Call(unix.SYS_FCHDIR, Reg(4).Arg())
	p.Step("look")
	p.checkDir("/proc/self/fd/4")
	c, err := launcher(t).Start(Launch{Program: p, Cgroup: -1, PIDNS: -1})
	require.NoError(t, err)
	err = c.AwaitExec(soon())
	require.EqualError(t, err, "working directory /proc/self/fd/4 is outside the container's root")
	wait(t, c.Process)
}

func TestSignalAndNamespaces(t *testing.T) {
	requireRoot(t)
	null := devNull(t)
	l := launcher(t)
	c, err := l.Start(Launch{Program: bare(t, plainProcess("sleep", "100"), null, null, null, ""), Cgroup: -1, PIDNS: -1, Namespaces: unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWNET})
	require.NoError(t, err)
	require.NoError(t, c.AwaitExec(soon()))
	// Join it.
	r, w, err := os.Pipe()
	require.NoError(t, err)
	p, err := NewProgram()
	require.NoError(t, err)
	sio := p.SetupStdio()
	p.Bind(sio[0], int(null.Fd()))
	p.Bind(sio[1], int(w.Fd()))
	p.Bind(sio[2], int(null.Fd()))
	p.Bind(p.Join(unix.CLONE_NEWPID|unix.CLONE_NEWUTS|unix.CLONE_NEWNET), c.Pidfd())
	p.Finish(Finish{Process: plainProcess("sh", "-c", "echo $$; readlink /proc/self/ns/uts; grep NSpid /proc/self/status")})
	j, err := l.Start(Launch{Program: p, Cgroup: -1, PIDNS: c.Pidfd()})
	require.NoError(t, err)
	w.Close()
	require.NoError(t, j.AwaitExec(soon()))
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	uts, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/uts", c.PID()))
	lines := strings.Split(string(out), "\n")
	require.Equal(t, "2", lines[0])
	require.Equal(t, uts, lines[1])
	require.Zero(t, wait(t, j.Process).Code)
	require.NoError(t, c.Signal(unix.SIGKILL))
	st := wait(t, c.Process)
	require.Equal(t, 137, st.Code)
	require.Equal(t, unix.SIGKILL, st.Signal)
	require.ErrorIs(t, c.Signal(unix.SIGKILL), os.ErrProcessDone)
	require.Zero(t, l.Children())
}

// requireRoot skips as a plain user, unless this rung of the tests is the one
// that must have the privilege.
func requireRoot(t testing.TB) {
	if os.Getuid() == 0 {
		return
	}
	if rung := os.Getenv("VMINIT_RUNG"); rung == "root" || rung == "vm" {
		t.Fatalf("rung %s must run as root", rung)
	}
	t.Skip("needs root")
}
