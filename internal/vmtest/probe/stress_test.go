package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestSignalReport(t *testing.T) {
	cmd := exec.Command(probePath, "signal-report", "-count", "3")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	next := func() string {
		require.True(t, lines.Scan())
		return lines.Text()
	}
	require.Equal(t, "ready", next())
	for sig, want := range map[unix.Signal]string{unix.SIGTERM: "SIGTERM", unix.SIGWINCH: "SIGWINCH", 40: "SIG40"} {
		require.NoError(t, cmd.Process.Signal(sig))
		require.Equal(t, want, next())
	}
	require.NoError(t, cmd.Wait())
}

func TestSleepIgnores(t *testing.T) {
	cmd := exec.Command(probePath, "sleep", "-ignore", "TERM,SIGINT", "10s")
	require.NoError(t, cmd.Start())
	// It ignores from the moment its signal disposition says so.
	ignored := func() bool {
		out, err := exec.Command("grep", "SigIgn", "/proc/"+strconv.Itoa(cmd.Process.Pid)+"/status").Output()
		require.NoError(t, err)
		mask, err := strconv.ParseUint(strings.Fields(string(out))[1], 16, 64)
		require.NoError(t, err)
		return mask&(1<<(unix.SIGTERM-1)) != 0
	}
	require.Eventually(t, ignored, 5*time.Second, 5*time.Millisecond)
	require.NoError(t, cmd.Process.Signal(unix.SIGTERM))
	require.NoError(t, cmd.Process.Signal(unix.SIGUSR1))
	err := cmd.Wait()
	var ee *exec.ExitError
	require.ErrorAs(t, err, &ee)
	require.Contains(t, err.Error(), "user defined signal 1")
}

func TestForkbomb(t *testing.T) {
	out, err := exec.Command(probePath, "forkbomb", "20").Output()
	require.NoError(t, err)
	require.JSONEq(t, `{"started":20}`, string(out))
}

func TestForkbombIsStopped(t *testing.T) {
	requireRoot(t)
	cmd := exec.Command("sh", "-c", `ulimit -u 30 2>/dev/null || ulimit -p 30; exec "$0" forkbomb 100`, probePath)
	cmd.SysProcAttr = nobody()
	cmd.SysProcAttr.Credential.Uid = 64123 // nobody else's processes count
	out, err := cmd.Output()
	require.NoError(t, err)
	var got struct {
		Started int
		Errno   string
	}
	require.NoError(t, json.Unmarshal(out, &got))
	require.Equal(t, "EAGAIN", got.Errno)
	require.InDelta(t, 20, got.Started, 10)
}

// TestOrphans makes this process the reaper and checks that what is reported
// arrives here with its status.
func TestOrphans(t *testing.T) {
	require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	defer func() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0) }()
	out, err := exec.Command(probePath, "orphans", "-for", "50ms", "-exit", "9", "5").Output()
	require.NoError(t, err)
	var got struct{ PIDs []int }
	require.NoError(t, json.Unmarshal(out, &got))
	require.Len(t, got.PIDs, 5)
	for _, pid := range got.PIDs {
		var ws unix.WaitStatus
		_, err := unix.Wait4(pid, &ws, 0, nil)
		require.NoError(t, err)
		require.Equal(t, 9, ws.ExitStatus())
	}
}

func TestHoldStdout(t *testing.T) {
	cmd := exec.Command(probePath, "hold-stdout", "-for", "300ms", "-exit", "3")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	start := time.Now()
	require.NoError(t, cmd.Start())
	ws, err := cmd.Process.Wait() // not cmd.Wait, which closes the pipe
	require.NoError(t, err)
	require.Equal(t, 3, ws.ExitCode())
	text, err := io.ReadAll(out)
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(start), 300*time.Millisecond, "the child let go too early")
	_, err = strconv.Atoi(strings.TrimSpace(string(text)))
	require.NoError(t, err)
}

func TestEatmem(t *testing.T) {
	cmd := exec.Command(probePath, "eatmem", "64M")
	out, err := cmd.Output()
	require.NoError(t, err)
	require.JSONEq(t, `{"bytes":67108864}`, string(out))
	require.Greater(t, cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss, int64(64<<10), "resident KiB")
}

func TestTry(t *testing.T) {
	requireRoot(t)
	names, err := exec.Command(probePath, "try", "list").Output()
	require.NoError(t, err)
	cmd := exec.Command(probePath, append([]string{"try", "open:/etc/passwd", "openw:/etc/passwd", "mkdir:/x",
		"unlink:/etc/passwd", "socket:1,1", "nr:39", "nr:9999,1,-1"}, strings.Fields(string(names))...)...)
	cmd.SysProcAttr = nobody()
	cmd.Dir = "/tmp"
	out, err := cmd.Output()
	require.NoError(t, err)
	var got map[string]string
	require.NoError(t, json.Unmarshal(out, &got))
	require.Len(t, got, 7+len(strings.Fields(string(names))))
	for name, want := range map[string]string{
		"open:/etc/passwd": "ok", "openw:/etc/passwd": "EACCES", "mkdir:/x": "EACCES", "unlink:/etc/passwd": "EACCES",
		"socket:1,1": "ok", "nr:39": "ok", "nr:9999,1,-1": "ENOSYS",
		"mount": "EPERM", "mount-remount-rw": "EPERM", "umount": "ENOENT", "fsopen": "EPERM", "open_tree": "EPERM",
		"pivot_root": "EPERM", "chroot": "EPERM", "mknod-char": "EPERM", "mknod-block": "EPERM", "mknod-fifo": "ok",
		"open-by-handle": "EPERM", "swapon": "EPERM", "unshare-mnt": "EPERM", "unshare-net": "EPERM",
		"setns": "EPERM", "setuid-0": "EPERM", "setgid-0": "EPERM", "setgroups": "EPERM", "sethostname": "EPERM",
		"nice-down": "EACCES", "reboot": "EPERM", "ptrace": "EPERM", "acct": "EPERM", "clock_settime": "EPERM",
		"write-core-pattern": "EACCES", "socket-packet": "EPERM",
	} {
		require.Equal(t, want, got[name], name)
	}
}
