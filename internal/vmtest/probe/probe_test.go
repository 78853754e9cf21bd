package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/vmtest/probe/pattern"
	"vminit/internal/vmtest/probe/report"
)

// probePath is the binary under test, built as it goes into containers.
var probePath string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		// Where any user may run it from.
		dir, err := os.MkdirTemp("", "probe-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		probePath = filepath.Join(dir, "probe")
		build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w -E vminit_probe_entry", "-o", probePath, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build probe: %v\n%s", err, out)
			return 1
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// requireRoot skips for an ordinary user, unless the rung demands root.
func requireRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if rung := os.Getenv("VMINIT_RUNG"); rung == "root" || rung == "vm" {
		t.Fatalf("rung %s needs root", rung)
	}
	t.Skip("needs root")
}

// nobody runs a command as a user without privileges.
func nobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65533, Groups: []uint32{7, 5}}}
}

// look runs the command, which is or execs the probe, and decodes its report.
func look(t *testing.T, cmd *exec.Cmd) *report.Report {
	t.Helper()
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	require.NoError(t, err)
	var r report.Report
	dec := json.NewDecoder(bytes.NewReader(out))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&r), string(out))
	return &r
}

// status is the exit status of a finished command.
func status(t *testing.T, err error) int {
	t.Helper()
	if err == nil {
		return 0
	}
	var ee *exec.ExitError
	require.ErrorAs(t, err, &ee)
	return ee.ExitCode()
}

func TestReportProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("sh", "-c", `umask 027; ulimit -Sn 123; ulimit -c 0; echo 321 >/proc/self/oom_score_adj; cd "$1"; exec "$0" report -sysctl kernel.ostype -sysctl no/such`, probePath, dir)
	cmd.Env = []string{"A=1", "A=2", "PWD=/wrong", "PATH=" + os.Getenv("PATH")}
	r := look(t, cmd)
	require.True(t, r.Early)
	require.Equal(t, dir, r.Cwd)
	require.Equal(t, probePath, r.Exe)
	require.Equal(t, []string{probePath, "report", "-sysctl", "kernel.ostype", "-sysctl", "no/such"}, r.Argv)
	v, ok := r.Getenv("A")
	require.True(t, ok)
	require.Contains(t, []string{"1", "2"}, v)
	require.Equal(t, cmd.Process.Pid, r.PID)
	require.Equal(t, os.Getpid(), r.PPID)
	require.Equal(t, 0o027, r.Umask)
	require.Equal(t, 321, r.OOMScoreAdj)
	require.EqualValues(t, 123, r.Rlimits["NOFILE"].Soft, "as it was before the runtime raised it")
	require.Greater(t, r.Rlimits["NOFILE"].Hard, uint64(123))
	require.Equal(t, report.Rlimit{}, r.Rlimits["CORE"])
	require.Len(t, r.Rlimits, 16)
	require.Equal(t, map[string]string{"kernel.ostype": "Linux"}, r.Sysctls)
	require.Contains(t, r.Errors, "sysctl no/such")
	require.Equal(t, "SCHED_OTHER", r.Scheduler.Policy)
	require.NotEmpty(t, r.CPUs)
	require.False(t, r.NoNewPrivs)
	host, err := os.Hostname()
	require.NoError(t, err)
	require.Equal(t, host, r.Hostname)

	var st unix.Stat_t
	require.NoError(t, unix.Stat("/proc/self/ns/mnt", &st))
	require.Equal(t, st.Ino, r.Namespaces["mnt"])
	require.Len(t, r.Namespaces, 10)

	mount, ok := r.Mount("/proc")
	require.True(t, ok)
	require.Equal(t, "proc", mount.Type)
	null, ok := r.Device("/dev/null")
	require.True(t, ok)
	require.Equal(t, report.Device{Path: "/dev/null", Type: "char", Mode: null.Mode, Major: 1, Minor: 3}, null)
	require.NotEmpty(t, r.Cgroup.Raw)
	require.Contains(t, fmt.Sprint(r.Interfaces), "lo")
	require.NotContains(t, r.Errors, "keyring")
}

func TestReportFDs(t *testing.T) {
	var pipe [2]int
	require.NoError(t, unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	stdin, extra := os.NewFile(uintptr(pipe[0]), "pipe"), os.NewFile(uintptr(pipe[1]), "pipe")
	defer stdin.Close()
	defer extra.Close()
	dir, err := os.Open(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()

	cmd := exec.Command(probePath)
	cmd.Stdin = stdin // non-blocking: the runtime opens its poller at once
	cmd.ExtraFiles = []*os.File{extra, dir}
	r := look(t, cmd)
	var got []string
	for _, f := range r.FDs {
		got = append(got, fmt.Sprint(f.FD, " ", f.Type))
	}
	want := []string{"0 fifo", "1 fifo", "2 " + r.FDs[2].Type, "3 fifo", "4 dir"}
	require.GreaterOrEqual(t, len(got), len(want))
	require.Equal(t, want, got[:len(want)]) // what follows was not close-on-exec in this process
	require.Equal(t, dir.Name(), r.FDs[4].Target)

	r = look(t, exec.Command("sh", "-c", `exec "$0" <&- 2>&-`, probePath))
	require.Equal(t, 1, r.FDs[0].FD)
	require.NotEqual(t, 2, r.FDs[min(1, len(r.FDs)-1)].FD)
}

func TestReportSignals(t *testing.T) {
	env, err := exec.LookPath("env")
	require.NoError(t, err)
	out, err := exec.Command(env, "--block-signal=TERM", "--ignore-signal=PIPE,USR1", "true").CombinedOutput()
	if err != nil {
		t.Skipf("this env cannot block signals: %s", out)
	}
	r := look(t, exec.Command(env, "--block-signal=TERM", "--ignore-signal=PIPE,USR1", probePath))
	require.Equal(t, []string{"SIGTERM"}, r.Signals.Blocked)
	require.Subset(t, r.Signals.Ignored, []string{"SIGPIPE", "SIGUSR1"})
	require.Empty(t, r.Signals.Pending)
}

func TestReportCredentials(t *testing.T) {
	requireRoot(t)
	cmd := exec.Command(probePath)
	cmd.SysProcAttr = nobody()
	cmd.SysProcAttr.AmbientCaps = []uintptr{unix.CAP_NET_RAW, unix.CAP_CHOWN}
	cmd.SysProcAttr.Setsid = true
	r := look(t, cmd)
	require.Equal(t, report.IDs{Real: 65534, Effective: 65534, Saved: 65534, FS: 65534}, r.UIDs)
	require.Equal(t, report.IDs{Real: 65533, Effective: 65533, Saved: 65533, FS: 65533}, r.GIDs)
	require.Equal(t, []int{5, 7}, r.Groups)
	two := []string{"CAP_CHOWN", "CAP_NET_RAW"}
	require.Equal(t, two, r.Capabilities.Ambient)
	require.Equal(t, two, r.Capabilities.Effective)
	require.Equal(t, two, r.Capabilities.Permitted)
	require.Equal(t, two, r.Capabilities.Inheritable)
	require.Contains(t, r.Capabilities.Bounding, "CAP_KILL")
	require.Equal(t, cmd.Process.Pid, r.SID)
	require.Equal(t, cmd.Process.Pid, r.PGID)
	require.Nil(t, r.TTY)
}

func TestStreams(t *testing.T) {
	out, err := exec.Command(probePath, "burst", "-chunk", "1000", "3M").Output()
	require.NoError(t, err)
	require.NoError(t, pattern.Check(bytes.NewReader(out), 3<<20))

	var stderr bytes.Buffer
	cmd := exec.Command(probePath, "burst", "-stderr", "-exit", "7", "100")
	cmd.Stderr = &stderr
	require.Equal(t, 7, status(t, cmd.Run()))
	require.NoError(t, pattern.Check(&stderr, 100))

	cmd = exec.Command(probePath, "sum")
	cmd.Stdin = strings.NewReader("abc")
	out, err = cmd.Output()
	require.NoError(t, err)
	require.JSONEq(t, `{"bytes":3,"sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}`, string(out))

	cmd = exec.Command(probePath, "echo")
	cmd.Stdin = strings.NewReader("a\nb")
	out, err = cmd.Output()
	require.NoError(t, err)
	require.Equal(t, "a\nb", string(out))
	out, err = exec.Command(probePath, "echo", "x", "y").Output()
	require.NoError(t, err)
	require.Equal(t, "x y\n", string(out))
}

func TestExitStatus(t *testing.T) {
	for _, tc := range []struct {
		args []string
		want int
	}{
		{[]string{"exit", "0"}, 0},
		{[]string{"exit", "42"}, 42},
		{[]string{"sleep", "1ms"}, 0},
		{[]string{"--help"}, 0},
		{[]string{"burst", "-h"}, 0},
		{[]string{"nonesuch"}, exitUsage},
		{[]string{"exit"}, exitUsage},
		{[]string{"exit", "x"}, exitUsage},
		{[]string{"exit", "1", "2"}, exitUsage},
		{[]string{"burst", "1X"}, exitUsage},
		{[]string{"burst", "9223372036854775807G"}, exitUsage},
		{[]string{"burst", "-1"}, exitUsage},
		{[]string{"sleep", "-ignore", "NONE", "1ms"}, exitUsage},
		{[]string{"try", "nonesuch"}, exitUsage},
		{[]string{"write", "/nonesuch/file", "x"}, exitFailed},
	} {
		require.Equal(t, tc.want, status(t, exec.Command(probePath, tc.args...).Run()), tc.args)
	}
}

func TestHelpNamesEveryCommand(t *testing.T) {
	out, err := exec.Command(probePath, "--help").Output()
	require.NoError(t, err)
	for _, c := range commands() {
		require.Contains(t, string(out), "\n  "+c.name)
		require.NotEmpty(t, c.help)
	}
}

func TestWrite(t *testing.T) {
	p := filepath.Join(t.TempDir(), "f")
	out, err := exec.Command(probePath, "write", p, "hello").Output()
	require.NoError(t, err)
	require.JSONEq(t, `{"bytes":5}`, string(out))
	cmd := exec.Command(probePath, "write", "-append", p)
	cmd.Stdin = strings.NewReader(" you")
	require.NoError(t, cmd.Run())
	b, err := os.ReadFile(p)
	require.NoError(t, err)
	require.Equal(t, "hello you", string(b))
	out, _ = exec.Command(probePath, "write", filepath.Dir(p), "x").Output()
	require.JSONEq(t, `{"bytes":0,"errno":"EISDIR"}`, string(out))
}

func TestSpinUsesCPU(t *testing.T) {
	cmd := exec.Command(probePath, "spin", "200ms")
	require.NoError(t, cmd.Run())
	require.Greater(t, cmd.ProcessState.UserTime(), 30*time.Millisecond)
}
