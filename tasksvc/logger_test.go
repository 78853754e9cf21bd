package tasksvc

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// script writes a program that logs to a directory of its own and returns its
// URI and the directory.
func (h *host) script(body string) (uri, dir string) {
	dir = h.t.TempDir()
	path := filepath.Join(dir, "log")
	text := "#!/bin/sh\ncd " + dir + "\n" + body + "\n"
	// Written by another name: a child of another test must not have it open.
	require.NoError(h.t, os.WriteFile(path+"~", []byte(text), 0o755))
	require.NoError(h.t, os.Rename(path+"~", path))
	return "binary://" + path, dir
}

const logScript = `echo $$ >pid
echo "$CONTAINER_ID $CONTAINER_NAMESPACE $CONTAINER_EXEC_ID $*" >info
ls /proc/self/fd | tr '\n' ' ' >fds
cat <&3 >out & cat <&4 >err &
exec 3<&- 4<&-
echo ready >&5; exec 5>&-
wait
echo done >end`

func readFile(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(data)
}

// awaitFile is readFile once somebody has written something there.
func awaitFile(t testing.TB, name string) string {
	t.Helper()
	var data []byte
	require.Eventually(t, func() bool {
		data, _ = os.ReadFile(name)
		return len(data) > 0
	}, 10*time.Second, time.Millisecond, name)
	return string(data)
}

func TestLogger(t *testing.T) {
	h := newHost(t)
	uri, dir := h.script(logScript)
	uri += "?key=a+value&flag&x=%2F"
	h.run("warmup", testSpec("true"))
	children, fds := h.cfg.Launcher.Children(), heldFds(t)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("echo out; echo err >&2; head -c 500000 /dev/zero; exit 3")), Stdout: uri, Stderr: uri})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	require.Equal(t, uint32(3), w.ExitStatus)
	h.delete("c1")
	require.Equal(t, "done\n", awaitFile(t, dir+"/end"), "it ends by itself when it has everything")
	require.Equal(t, "out\n"+strings.Repeat("\x00", 500000), readFile(t, dir+"/out"))
	require.Equal(t, "err\n", readFile(t, dir+"/err"))
	require.Equal(t, "c1 default  key a value flag x /\n", readFile(t, dir+"/info"))
	require.Equal(t, "0 1 2 3 4 5 6 ", readFile(t, dir+"/fds"), "6 is ls's own")
	settled(t, h, children, fds)
}

// heldFds counts descriptors without those the daemon keeps for its next
// launches: a network namespace, device filters.
func heldFds(t testing.TB) (n int) {
	open, err := openFDs()
	require.NoError(t, err)
	for _, f := range open {
		if !strings.HasPrefix(f.Target, "net:") && f.Target != "anon_inode:bpf-prog" {
			n++
		}
	}
	return n
}

// settled waits until no child and no descriptor is left.
func settled(t testing.TB, h *host, children, fds int) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); h.cfg.Launcher.Children() > children || heldFds(t) > fds; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			open, _ := openFDs()
			t.Fatalf("%d children, were %d; %d descriptors, were %d: %v", h.cfg.Launcher.Children(), children, heldFds(t), fds, open)
		}
	}
}

// Each of the two may have a process of its own, or none; an exec too.
func TestLoggerOneStream(t *testing.T) {
	h := newHost(t)
	first, dir1 := h.script(logScript)
	second, dir2 := h.script(logScript)
	h.running("c1", testSpec("sleep 1000"))
	_, err := h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: "c1", ExecID: "e1", Stdout: first, Stderr: second,
		Spec: &anypb.Any{Value: []byte(`{"cwd":"/","args":["/bin/sh","-c","echo out; echo err >&2"]}`)}})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1", ExecID: "e1"})
	require.NoError(t, err)
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1", ExecID: "e1"})
	require.NoError(t, err)
	_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: "c1", ExecID: "e1"})
	require.NoError(t, err)
	for _, dir := range []string{dir1, dir2} {
		awaitFile(t, dir+"/end")
		require.Equal(t, "c1 default e1 \n", readFile(t, dir+"/info"))
	}
	require.Equal(t, "out\n", readFile(t, dir1+"/out"))
	require.Empty(t, readFile(t, dir1+"/err"))
	require.Empty(t, readFile(t, dir2+"/out"))
	require.Equal(t, "err\n", readFile(t, dir2+"/err"))
}

// Its death neither blocks nor ends the container.
func TestLoggerDies(t *testing.T) {
	h := newHost(t)
	uri, dir := h.script("echo $$ >pid; exec >out 5>&-; exec cat <&3")
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("sleep 0.3; head -c 1000000 /dev/zero || exit 1; exit 5")), Stdout: uri})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	h.Service.mu.Lock()
	c := h.containers[containerKey{"default", "c1"}]
	h.Service.mu.Unlock()
	require.NoError(t, c.init.io.loggers[0].child.Signal(unix.SIGKILL))
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	require.Equal(t, uint32(5), w.ExitStatus)
	began := time.Now()
	h.delete("c1")
	require.Less(t, time.Since(began), 5*time.Second)
	require.Equal(t, "", readFile(t, dir+"/out"))
}

// One that cannot be run, dies or never gets ready fails the Create, which
// leaves nothing.
func TestLoggerFails(t *testing.T) {
	h := newHost(t)
	h.run("warmup", testSpec("true"))
	never, dir := h.script("echo $$ >pid; exec sleep 1000")
	dies, _ := h.script("exit 9")
	notexec := filepath.Join(t.TempDir(), "x")
	require.NoError(t, os.WriteFile(notexec, []byte("x"), 0o644))
	children, fds := h.cfg.Launcher.Children(), heldFds(t)
	for _, tc := range []struct {
		uri, text string
		code      codes.Code
	}{
		{"binary:///nosuch/logger", "no such file or directory", codes.InvalidArgument},
		{"binary://" + notexec, "permission denied", codes.InvalidArgument},
		{"binary://relative", "is not absolute", codes.InvalidArgument},
		{"binary:///x?%zz", "invalid URL escape", codes.InvalidArgument},
		{dies, "it ended with status 9 before it was ready", codes.FailedPrecondition},
		{never, "wait until it is ready", codes.DeadlineExceeded},
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_, err := h.Create(ctx, &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("true")), Stdout: tc.uri})
		require.ErrorContains(t, err, tc.text)
		require.Equal(t, tc.code, status.Code(toStatus(err)), tc.uri)
	}
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("true")), Stdin: dies})
	require.ErrorContains(t, err, "is for output")
	require.NotEmpty(t, awaitFile(t, dir+"/pid"))
	settled(t, h, children, fds)
}

// One that does not end is killed in the end; nobody waits for it.
func TestLoggerStays(t *testing.T) {
	h := newHost(t)
	uri, _ := h.script("exec 5>&-; trap '' TERM; exec sleep 1000")
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("true")), Stdout: uri})
	require.NoError(t, err)
	l := h.containers[containerKey{"default", "c1"}].init.io.loggers[0]
	child := l.child
	l.child = nil // the delete's patience is ten seconds
	h.delete("c1")
	began := time.Now()
	endLogger(child, 200*time.Millisecond, 200*time.Millisecond)
	require.Equal(t, unix.SIGKILL, child.Exit().Signal)
	require.Greater(t, time.Since(began), 400*time.Millisecond)
}
