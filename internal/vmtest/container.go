package vmtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	bundleapi "vminit/api/services/bundle/v1"
)

// Result is what a process left behind.
type Result struct {
	Stdout, Stderr string
	Code           uint32
}

// Process is the stdio of a process that runs in the guest.
type Process struct {
	g        *Guest
	id, exec string
	stdin    io.WriteCloser
	out, err chan string
}

var serial atomic.Uint32

// NewID returns a container or stream id not used before.
func NewID() string { return strconv.Itoa(int(serial.Add(1))) }

// Spec is a container of default shape that runs args.
func Spec(args ...string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
	strict := []string{"nosuid", "noexec", "nodev"}
	return &specs.Spec{
		Version: "1.2.0", Hostname: "guest-box",
		Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: args, Cwd: "/", NoNewPrivileges: true, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: strict},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"mode=1777", "size=65536k"}, strict...)},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: strict},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"ro"}, strict...)},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append([]string{"relatime", "ro"}, strict...)},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}},
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// RootMounts gives a container the shared root image with a tmpfs for writes.
func RootMounts() []*types.Mount {
	return []*types.Mount{
		{Type: "erofs", Source: "/dev/vda", Options: []string{"ro"}},
		{Type: "tmpfs", Source: "tmpfs"},
		{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
			"X-containerd.mkdir.path={{ mount 1 }}/upper:0755", "X-containerd.mkdir.path={{ mount 1 }}/work:0755",
			"lowerdir={{ mount 0 }}", "upperdir={{ mount 1 }}/upper", "workdir={{ mount 1 }}/work"}},
	}
}

// Create makes the bundle and the container. stdin says whether there is one.
func (g *Guest) Create(ctx context.Context, id string, spec *specs.Spec, stdin bool) (*Process, error) {
	config, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	return g.CreateRaw(ctx, id, config, stdin, spec.Process != nil && spec.Process.Terminal)
}

// CreateRaw is Create with a config.json that need not be one.
func (g *Guest) CreateRaw(ctx context.Context, id string, config []byte, stdin, terminal bool) (*Process, error) {
	b, err := g.Bundle.Create(ctx, &bundleapi.CreateRequest{Id: id, Files: map[string][]byte{"config.json": config}})
	if err != nil {
		return nil, err
	}
	p, in, out, errs, err := g.openStdio(ctx, stdin, terminal)
	if err != nil {
		return nil, err
	}
	p.id = id
	_, err = g.Task.Create(ctx, &taskv3.CreateTaskRequest{ID: id, Bundle: b.Bundle, Rootfs: RootMounts(), Stdin: in, Stdout: out, Stderr: errs, Terminal: terminal})
	return p, err
}

// openStdio opens the streams of a process and reads its output.
func (g *Guest) openStdio(ctx context.Context, stdin, terminal bool) (p *Process, in, out, errs string, err error) {
	p = &Process{g: g, out: make(chan string, 1), err: make(chan string, 1)}
	open := func(collect chan string) (string, error) {
		id := NewID()
		c, err := g.VM.OpenStream(ctx, id)
		if err != nil {
			return "", err
		}
		if collect == nil {
			p.stdin = &halfCloser{c}
			return "stream://" + id, nil
		}
		go func() {
			defer c.Close()
			data, err := io.ReadAll(c)
			if err != nil {
				data = append(data, "\n[read: "+err.Error()+"]"...)
			}
			collect <- string(data)
		}()
		return "stream://" + id, nil
	}
	if stdin {
		if in, err = open(nil); err != nil {
			return
		}
	}
	if out, err = open(p.out); err != nil {
		return
	}
	if terminal {
		p.err <- ""
		return
	}
	errs, err = open(p.err)
	return
}

// halfCloser ends stdin by a half-close and keeps the connection.
type halfCloser struct {
	conn interface {
		io.Writer
		CloseWrite() error
	}
}

func (h *halfCloser) Write(b []byte) (int, error) { return h.conn.Write(b) }
func (h *halfCloser) Close() error                { return h.conn.CloseWrite() }

// Stdin writes to the process; closing it is the end of its input.
func (p *Process) Stdin() io.WriteCloser { return p.stdin }

// Start starts the process.
func (p *Process) Start(ctx context.Context) error {
	_, err := p.g.Task.Start(ctx, &taskv3.StartRequest{ID: p.id, ExecID: p.exec})
	return err
}

// Finish waits for the exit, deletes the process and returns what it wrote.
func (p *Process) Finish(ctx context.Context) (Result, error) {
	w, err := p.g.Task.Wait(ctx, &taskv3.WaitRequest{ID: p.id, ExecID: p.exec})
	if err != nil {
		return Result{}, fmt.Errorf("wait: %w", err)
	}
	if _, err := p.g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: p.id, ExecID: p.exec}); err != nil {
		return Result{}, fmt.Errorf("delete: %w", err)
	}
	r := Result{Code: w.ExitStatus}
	for _, x := range []struct {
		from chan string
		to   *string
	}{{p.out, &r.Stdout}, {p.err, &r.Stderr}} {
		select {
		case *x.to = <-x.from:
		case <-ctx.Done():
			return r, errors.New("output did not end")
		}
	}
	return r, nil
}

// Run takes a container through its whole life.
func (g *Guest) Run(ctx context.Context, spec *specs.Spec) (Result, error) {
	p, err := g.Create(ctx, "c"+NewID(), spec, false)
	if err != nil {
		return Result{}, fmt.Errorf("create: %w", err)
	}
	if err := p.Start(ctx); err != nil {
		_, _ = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: p.id})
		return Result{}, fmt.Errorf("start: %w", err)
	}
	return p.Finish(ctx)
}

// Exec makes a process in a running container.
func (g *Guest) Exec(ctx context.Context, id string, spec *specs.Process, stdin bool) (*Process, error) {
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	p, in, out, errs, err := g.openStdio(ctx, stdin, spec.Terminal)
	if err != nil {
		return nil, err
	}
	p.id, p.exec = id, "e"+NewID()
	_, err = g.Task.Exec(ctx, &taskv3.ExecProcessRequest{ID: id, ExecID: p.exec, Terminal: spec.Terminal, Stdin: in, Stdout: out, Stderr: errs,
		Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: data}})
	return p, err
}

// Context ends with the test or after a minute or so.
func Context(t interface{ Cleanup(func()) }) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Second)
	t.Cleanup(cancel)
	return ctx
}
