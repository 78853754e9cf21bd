package tasksvc

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	runtimeapi "vminit/api/services/runtime/v1"
	"vminit/internal/sys"
	"vminit/vsockstream"
)

var lastStream atomic.Uint32

// hub serves streams on a unix socket and returns a function that hands
// descriptors over there.
func (h *host) hub() func(fds ...int) (uri string, conn vsockstream.Conn) {
	hub := vsockstream.NewHub(vsockstream.HubConfig{ClaimTimeout: 200 * time.Millisecond})
	address := "unix://" + filepath.Join(h.t.TempDir(), "s")
	l, err := (vsockstream.ListenConfig{}).Listen(address)
	require.NoError(h.t, err)
	go func() { _ = hub.Serve(h.ctx(), l) }()
	h.cfg.Streams = hub
	h.t.Cleanup(func() {
		_, unclaimed, claimed := hub.Stats()
		require.Zero(h.t, unclaimed+claimed, "streams left")
		hub.Close()
	})
	return func(fds ...int) (string, vsockstream.Conn) {
		conn, err := vsockstream.Dial(h.ctx(), address)
		require.NoError(h.t, err)
		h.t.Cleanup(func() { conn.Close() })
		id := fmt.Sprint(lastStream.Add(1))
		require.NoError(h.t, vsockstream.OpenWithFDs(h.ctx(), conn.(*net.UnixConn), vsockstream.FramingU32, id, fds...))
		return schemeFDs + id, conn
	}
}

// TestHandover: descriptors become the process's own stdio and what follows,
// and nothing of them is left in the daemon.
func TestHandover(t *testing.T) {
	h := newHost(t)
	give := h.hub()
	h.run("warm", testSpec("true")) // what is opened once stays
	before := openFiles(t)
	dir := t.TempDir()
	open := func(name string) *os.File {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	out, third, fourth := open("out"), open("third"), open("fourth")
	spec := testSpec(`echo out; echo third >&3; echo fourth >&4; echo $LISTEN_FDS $LISTEN_PID; ls /proc/self/fd | wc -l; echo again >>/dev/stdout; sleep 100`)
	spec.Process.User.UID = 1000
	spec.Annotations = map[string]string{"a": "b"}
	uri, conn := give(int(out.Fd()), int(out.Fd()), int(out.Fd()), int(third.Fd()), int(fourth.Fd()))
	uri += "?listen=1"
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c", Bundle: h.bundle(spec), Stdin: uri, Stdout: uri, Stderr: uri})
	require.NoError(t, err)
	conn.Close() // the container lives on
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c"})
	require.NoError(t, err)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		data, _ := os.ReadFile(out.Name())
		assert.Equal(c, "out\n1 1\n6\nagain\n", string(data)) // ls has one more open
	}, 20*time.Second, 5*time.Millisecond)
	for f, want := range map[*os.File]string{third: "third\n", fourth: "fourth\n"} {
		data, err := os.ReadFile(f.Name())
		require.NoError(t, err)
		require.Equal(t, want, string(data))
	}
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(out.Fd()), &st))
	require.EqualValues(t, 1000, st.Uid, "stdio is the user's")

	list, err := NewRuntime(h.Service, true).List(h.ctx(), &runtimeapi.ListRequest{Id: "c", Process: true})
	require.NoError(t, err)
	c := list.Containers[0]
	require.Equal(t, "running", c.Status)
	require.Equal(t, map[string]string{"a": "b"}, c.Annotations)
	require.Equal(t, filepath.Join(c.Bundle, "rootfs"), c.Rootfs)
	require.NotContains(t, string(c.Process), "LISTEN_FDS=")

	// An exec is forgotten when it has ended and its client has gone.
	r, w, err := os.Pipe()
	require.NoError(t, err)
	uri, conn = give(int(r.Fd()), int(w.Fd()), int(w.Fd()), int(third.Fd()))
	w.Close()
	_, err = h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: "c", ExecID: "e", Stdin: uri, Stdout: uri, Stderr: uri,
		Spec: &anypb.Any{Value: []byte(`{"cwd":"/","user":{},"env":["PATH=/bin"],"args":["sh","-c","echo fifth >&3; exit 5"]}`)}})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c", ExecID: "e"})
	require.NoError(t, err)
	exit, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c", ExecID: "e"})
	require.NoError(t, err)
	require.EqualValues(t, 5, exit.ExitStatus)
	_, err = h.State(h.ctx(), &taskv3.StateRequest{ID: "c", ExecID: "e"})
	require.NoError(t, err)
	conn.Close()
	require.Eventually(t, func() bool {
		_, err = h.State(h.ctx(), &taskv3.StateRequest{ID: "c", ExecID: "e"})
		return err != nil
	}, 20*time.Second, 5*time.Millisecond)
	r.Close()

	_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c", Signal: uint32(unix.SIGKILL)})
	require.NoError(t, err)
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c"})
	require.NoError(t, err)
	h.delete("c")
	for f := range map[*os.File]bool{out: true, third: true, fourth: true} {
		f.Close()
	}
	require.Eventually(t, func() bool { return openFiles(t) <= before }, 10*time.Second, 10*time.Millisecond, "descriptors left")
}

// TestConsoleSocket: the master of the terminal goes to the client, and only
// there.
func TestConsoleSocket(t *testing.T) {
	h := newHost(t)
	give := h.hub()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(pair[0])
	spec := testSpec("stty size; test -t 3 || echo no; echo done")
	spec.Process.Terminal, spec.Process.ConsoleSize = true, &specs.Box{Height: 33, Width: 77}
	null, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer null.Close()
	uri, _ := give(pair[1], int(null.Fd()))
	unix.Close(pair[1])
	_, err = h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c", Bundle: h.bundle(spec), Stdin: uri, Stdout: uri, Stderr: uri, Terminal: true})
	require.NoError(t, err)
	data, oob := make([]byte, 64), make([]byte, 64)
	n, oobn, _, _, err := unix.Recvmsg(pair[0], data, oob, unix.MSG_CMSG_CLOEXEC)
	require.NoError(t, err)
	require.Equal(t, "/dev/ptmx", string(data[:n]))
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	require.NoError(t, err)
	fds, err := unix.ParseUnixRights(&messages[0])
	require.NoError(t, err)
	require.NoError(t, unix.SetNonblock(fds[0], true))
	master := os.NewFile(uintptr(fds[0]), "master")
	defer master.Close()

	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c"})
	require.NoError(t, err)
	var text []byte
	for err == nil { // ends with EIO, when nobody has the terminal any more
		n, err = master.Read(data)
		text = append(text, data[:n]...)
	}
	require.ErrorIs(t, err, unix.EIO)
	require.Equal(t, "33 77\r\nno\r\ndone\r\n", string(text))
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c"})
	require.NoError(t, err)
	h.delete("c")
}

// TestBadHandover: what cannot be leaves nothing behind.
func TestBadHandover(t *testing.T) {
	h := newHost(t)
	give := h.hub()
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	require.NoError(t, err)
	defer null.Close()
	fd := int(null.Fd())
	before := openFiles(t)
	create := func(terminal bool, in, out, errs string) error {
		spec := testSpec("true")
		spec.Process.Terminal = terminal
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c", Bundle: h.bundle(spec), Stdin: in, Stdout: out, Stderr: errs, Terminal: terminal})
		return err
	}
	two, c1 := give(fd, fd)
	require.ErrorIs(t, create(false, two, two, two), sys.ErrInvalid)
	listen, c2 := give(fd, fd, fd)
	listen += "?listen=1"
	require.ErrorIs(t, create(false, listen, listen, listen), sys.ErrInvalid)
	console, c3 := give(fd)
	require.ErrorIs(t, create(true, console, console, console), sys.ErrInvalid)
	none := schemeFDs + "999999"
	require.ErrorIs(t, create(false, none, none, none), sys.ErrNotFound)
	require.ErrorIs(t, create(false, none, none, ""), sys.ErrInvalid)
	for _, bad := range []string{"fds://7?x=1", "fds://7?listen=-1", "fds://7?listen=256", "fds://7?%", "fds://x"} {
		require.ErrorIs(t, create(false, bad, bad, bad), sys.ErrInvalid, bad)
	}
	for _, c := range []vsockstream.Conn{c1, c2, c3} {
		c.Close()
	}
	require.Eventually(t, func() bool { return openFiles(t) <= before }, 10*time.Second, 10*time.Millisecond, "descriptors left")
}

// openFiles counts this process's descriptors.
func openFiles(t *testing.T) int {
	all, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(all)
}
