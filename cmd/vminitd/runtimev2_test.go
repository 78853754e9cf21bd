package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
)

// eventSink is containerd's end of TTRPC_ADDRESS.
type eventSink struct {
	mu     sync.Mutex // guards topics
	topics []string
}

func (s *eventSink) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.topics = append(s.topics, r.Envelope.Namespace+" "+r.Envelope.Topic)
	return &emptypb.Empty{}, nil
}

func (s *eventSink) seen() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.topics...)
}

// TestRuntimeV2 uses the daemon as containerd uses the task server of a shim,
// whose bundle it has made: config.json is there, the root file system is for
// the server to mount, stdio is fifos, events go to TTRPC_ADDRESS.
func TestRuntimeV2(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("VMINIT_RUNG") != "" {
			t.Fatal("the rungs that run this have root")
		}
		t.Skip("needs root")
	}
	dir := t.TempDir()
	sink := &eventSink{}
	srv, err := ttrpc.NewServer()
	require.NoError(t, err)
	eventsapi.RegisterTTRPCEventsService(srv, sink)
	l, err := net.Listen("unix", dir+"/containerd.sock")
	require.NoError(t, err)
	go srv.Serve(t.Context(), l)
	defer srv.Close()

	socket := dir + "/task.sock"
	d := exec.Command(os.Args[0], "-listen", "unix://"+socket, "-stream-listen", "unix://"+dir+"/stream.sock")
	d.Env = append(os.Environ(), childEnv+"=daemon", "TTRPC_ADDRESS="+dir+"/containerd.sock")
	d.Stderr = os.Stderr
	require.NoError(t, d.Start())
	defer d.Process.Kill()
	var conn net.Conn
	require.Eventually(t, func() bool {
		conn, err = net.Dial("unix", socket)
		return err == nil
	}, 30*time.Second, 5*time.Millisecond)
	client := ttrpc.NewClient(conn)
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ctx = ttrpc.WithMetadata(ctx, ttrpc.MD{"containerd-namespace-ttrpc": []string{"k8s.io"}})

	for _, version := range []string{"v3", "v2"} { // the messages are the same
		call := func(method string, req, resp any) error {
			return client.Call(ctx, "containerd.task."+version+".Task", method, req, resp)
		}
		id := "box-" + version
		bundle := filepath.Join(dir, id)
		spec := &specs.Spec{
			Version: "1.1.0", Root: &specs.Root{Path: "rootfs"},
			Process: &specs.Process{Args: []string{"/bin/busybox", "sh", "-c", "read x; echo got $x; echo oops >&2; exit 9"}, Cwd: "/", Env: []string{"PATH=/bin"}},
			Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
			Linux: &specs.Linux{CgroupsPath: "/k8s.io/" + id, Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}}},
		}
		config, err := json.Marshal(spec)
		require.NoError(t, err)
		image := filepath.Join(dir, "image-"+version)
		for _, path := range []string{bundle + "/rootfs", image + "/bin", image + "/proc"} {
			require.NoError(t, os.MkdirAll(path, 0o755))
		}
		require.NoError(t, os.WriteFile(bundle+"/config.json", config, 0o600))
		busybox, err := os.ReadFile("/bin/busybox")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(image+"/bin/busybox", busybox, 0o755))

		var fifos [3]string
		var output [3]chan string
		for i, name := range []string{"stdin", "stdout", "stderr"} {
			fifos[i] = filepath.Join(bundle, name)
			require.NoError(t, unix.Mkfifo(fifos[i], 0o600))
			if i > 0 {
				output[i] = make(chan string, 1)
				go func() { // containerd opens its ends before it calls Create
					f, err := os.Open(fifos[i])
					if err == nil {
						data, _ := io.ReadAll(f)
						output[i] <- string(data)
					}
				}()
			}
		}
		var created taskv3.CreateTaskResponse
		require.NoError(t, call("Create", &taskv3.CreateTaskRequest{ID: id, Bundle: bundle, Stdin: fifos[0], Stdout: fifos[1], Stderr: fifos[2],
			Rootfs: []*types.Mount{{Type: "bind", Source: image, Options: []string{"rbind", "rw"}}}}, &created))
		require.FileExists(t, fmt.Sprintf("/proc/%d/stat", created.Pid), "a pid of this machine")
		require.FileExists(t, fmt.Sprintf("/proc/%d/root%s/rootfs/bin/busybox", d.Process.Pid, bundle), "mounted where the bundle has it")
		var connected taskv3.ConnectResponse
		require.NoError(t, call("Connect", &taskv3.ConnectRequest{ID: id}, &connected))
		require.EqualValues(t, d.Process.Pid, connected.ShimPid)
		require.Equal(t, created.Pid, connected.TaskPid)

		w, err := os.OpenFile(fifos[0], os.O_WRONLY, 0)
		require.NoError(t, err)
		require.NoError(t, call("Start", &taskv3.StartRequest{ID: id}, &taskv3.StartResponse{}))
		var state taskv3.StateResponse
		require.NoError(t, call("State", &taskv3.StateRequest{ID: id}, &state))
		require.Equal(t, []string{"RUNNING", bundle, fifos[1]}, []string{state.Status.String(), state.Bundle, state.Stdout})
		_, err = io.WriteString(w, "line\n")
		require.NoError(t, err)
		var exit taskv3.WaitResponse
		require.NoError(t, call("Wait", &taskv3.WaitRequest{ID: id}, &exit))
		require.EqualValues(t, 9, exit.ExitStatus)
		w.Close()
		require.NoError(t, call("Delete", &taskv3.DeleteRequest{ID: id}, &taskv3.DeleteResponse{}))
		require.Equal(t, "got line\n", <-output[1])
		require.Equal(t, "oops\n", <-output[2])
		require.NoFileExists(t, fmt.Sprintf("/proc/%d/root%s/rootfs/bin/busybox", d.Process.Pid, bundle), "unmounted")
		require.FileExists(t, bundle+"/config.json", "the bundle is containerd's")
		want := []string{"k8s.io /tasks/create", "k8s.io /tasks/start", "k8s.io /tasks/exit", "k8s.io /tasks/delete"}
		if version == "v2" {
			want = append(want, want...)
		}
		require.Eventually(t, func() bool { return len(sink.seen()) >= len(want) }, 10*time.Second, 5*time.Millisecond)
		require.Equal(t, want, sink.seen())
	}
	require.NoError(t, client.Call(ctx, "containerd.task.v3.Task", "Shutdown", &taskv3.ShutdownRequest{}, &emptypb.Empty{}))
	ended := make(chan error, 1)
	go func() { ended <- d.Wait() }()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(20 * time.Second):
		t.Fatal("the daemon does not end")
	}
	require.NoFileExists(t, socket)
}
