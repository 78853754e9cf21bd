package tasksvc

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/cgroup2"
	"vminit/nsexec"
)

// host is a Service with what it needs, in this process.
type host struct {
	*Service
	t      testing.TB
	events *Exchange
	fifos  string
}

// testTree is this test binary's own: others may run at the same time.
var testTree = fmt.Sprintf("vminit-test-%d", os.Getpid())

var sharedLauncher = sync.OnceValues(nsexec.NewLauncher)

func newHost(t testing.TB) *host {
	requireRoot(t)
	l, err := sharedLauncher()
	require.NoError(t, err)
	mount := cgroupMount(t)
	tree, err := cgroup2.OpenTree(mount, testTree)
	require.NoError(t, err)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	settled := make(chan struct{})
	close(settled)
	h := &host{t: t, events: NewExchange(log), fifos: t.TempDir()}
	require.NoError(t, copyFile("/bin/busybox", h.busybox()), "busybox-static is needed")
	h.Service, err = NewService(Config{Launcher: l, Cgroups: func() (*cgroup2.Tree, error) { return tree, nil }, CgroupMount: mount, Events: h.events, Settled: settled, Shutdown: func() {}, Version: "test", Logger: log})
	require.NoError(t, err)
	h.spareNetwork() // before anybody counts descriptors
	t.Cleanup(func() {
		require.Empty(t, h.containers, "containers left")
		if !h.refill.Stop() { // it may be about to make a namespace that the next test would count
			time.Sleep(5 * time.Millisecond)
		}
		h.network.Take().Close()
		tree.Close()
		_ = os.Remove(filepath.Join(mount, testTree))
	})
	return h
}

// cgroupMount finds a cgroup2 hierarchy: a pure one, or the one beside v1.
func cgroupMount(t testing.TB) string {
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return dir
		}
	}
	t.Fatal("no cgroup2 mount")
	return ""
}

func requireRoot(t testing.TB) {
	if os.Getuid() == 0 {
		return
	}
	if rung := os.Getenv("VMINIT_RUNG"); rung == "root" || rung == "vm" {
		t.Fatalf("rung %s must run as root", rung)
	}
	t.Skip("needs root")
}

// testSpec is a container as containerd would ask for, running a script.
func testSpec(script string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	return &specs.Spec{
		Version: "1.2.0",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin", "GREETING=hello"}, Cwd: "/", NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}},
		Hostname: "box",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace}},
			MaskedPaths: []string{"/proc/keys", "/proc/acpi"}, ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

// bundle writes a bundle with busybox as its root file system.
func (h *host) bundle(spec *specs.Spec) string {
	dir := h.t.TempDir()
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "etc"} {
		require.NoError(h.t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	// A link: a child of another test would have a copy open for writing for a
	// moment, and execve would answer ETXTBSY.
	require.NoError(h.t, os.Link(h.busybox(), root+"/bin/busybox"))
	for _, n := range []string{"sh", "cat", "sleep", "stty", "wc", "true", "kill", "hostname", "id", "ls", "tty", "head"} {
		require.NoError(h.t, os.Symlink("busybox", root+"/bin/"+n))
	}
	data, err := json.Marshal(spec)
	require.NoError(h.t, err)
	require.NoError(h.t, os.WriteFile(dir+"/config.json", data, 0o600))
	return dir
}

func (h *host) busybox() string { return filepath.Join(h.fifos, "busybox") }

func (h *host) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	h.t.Cleanup(cancel)
	return ctx
}

// fifo makes a named pipe for a process's stdio.
func (h *host) fifo(name string) string {
	path := filepath.Join(h.fifos, name)
	require.NoError(h.t, unix.Mkfifo(path, 0o600))
	return path
}

// reader collects what arrives at a fifo until its writers are gone. It is one
// of them itself until the result is asked for.
func (h *host) reader(path string) func() string {
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	require.NoError(h.t, err)
	w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	require.NoError(h.t, err)
	out := make(chan string, 1)
	go func() {
		defer r.Close()
		data, err := io.ReadAll(r)
		if err != nil {
			data = []byte(err.Error())
		}
		out <- string(data)
	}()
	return func() string {
		w.Close()
		return <-out
	}
}

// run takes a container through its whole life and returns stdout, stderr and
// the exit code.
func (h *host) run(id string, spec *specs.Spec) (stdout, stderr string, code uint32) {
	out, errs := h.fifo(id+"-out"), h.fifo(id+"-err")
	o, e := h.reader(out), h.reader(errs)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: id, Bundle: h.bundle(spec), Stdout: out, Stderr: errs})
	require.NoError(h.t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: id})
	require.NoError(h.t, err)
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: id})
	require.NoError(h.t, err)
	h.delete(id)
	h.spareNetwork() // so that descriptors are the same after every run
	return o(), e(), w.ExitStatus
}

func (h *host) delete(id string) *taskv3.DeleteResponse {
	d, err := h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: id})
	require.NoError(h.t, err)
	return d
}

// topics drains the events published so far.
func topics(sub *Subscription) []string {
	var out []string
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		env, err := sub.Next(ctx)
		cancel()
		if err != nil {
			return out
		}
		out = append(out, env.Topic)
	}
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}
