package rootfs

import (
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

	"vminit/nsexec"
)

func requireRoot(t testing.TB) {
	if os.Getuid() == 0 {
		return
	}
	if rung := os.Getenv("VMINIT_RUNG"); rung == "root" || rung == "vm" {
		t.Fatalf("rung %s must run as root", rung)
	}
	t.Skip("needs root")
}

var launcher = sync.OnceValues(nsexec.NewLauncher)

// box says how a container of a test is launched.
type box struct {
	opt       Options
	keep      uint64 // namespaces it shares with the test
	maps      []specs.LinuxIDMapping
	script    string
	terminal  bool
	beforeRun func(pid int)
}

const allNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// run executes a shell script in a container made of the spec's file system.
func run(t testing.TB, spec *specs.Spec, script string) (string, error) {
	return box{script: script}.run(t, spec)
}

// runUserNS is run in a user namespace whose root is the guest's 100000.
func runUserNS(t testing.TB, spec *specs.Spec, script string) (string, error) {
	return box{script: script, maps: []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}}.run(t, spec)
}

func (b box) run(t testing.TB, spec *specs.Spec) (string, error) {
	requireRoot(t)
	if b.maps != nil { // its root must be able to make mount points
		_ = os.Chown(spec.Root.Path, int(b.maps[0].HostID), int(b.maps[0].HostID))
	}
	l, err := launcher()
	require.NoError(t, err)
	p, err := nsexec.NewProgram()
	require.NoError(t, err)
	defer p.Close()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	null, err := os.Open("/dev/null")
	require.NoError(t, err)
	defer null.Close()
	for i, r := range p.SetupStdio() {
		p.Bind(r, int([]*os.File{null, w, w}[i].Fd()))
	}
	handlers := map[nsexec.GateID]GateHandler{}
	gate := func(name string, do GateHandler) { handlers[p.Gate(name)] = do }
	b.compile(p, spec, gate)
	if b.terminal {
		p.SetupTerminal(0, true, false)
	}
	last := p.Finish(nsexec.Finish{Process: &specs.Process{Cwd: "/", Args: []string{"/bin/sh", "-c", b.script}, Env: []string{"PATH=/bin"}}, Gate: "start"}).Gate
	if os.Getenv("PRINT_PLAN") != "" {
		t.Log(p.String())
	}
	if p.Err() != nil {
		return "", p.Err()
	}
	c, err := l.Start(nsexec.Launch{Program: p, Cgroup: -1, PIDNS: -1, Namespaces: b.namespaces()})
	require.NoError(t, err)
	defer func() {
		c.Abandon()
		_ = c.Signal(unix.SIGKILL)
		<-c.Done()
		require.NoError(t, c.Process.Close())
	}()
	if err := handleUntil(c, handlers, last); err != nil {
		return "", err
	}
	if b.beforeRun != nil {
		b.beforeRun(c.PID())
	}
	if err := c.Open(); err != nil {
		return "", err
	}
	if err := c.AwaitExec(soon()); err != nil {
		return "", err
	}
	w.Close()
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	<-c.Done()
	return strings.TrimSpace(string(out)), nil
}

func (b *box) namespaces() uint64 {
	ns := allNamespaces &^ b.keep
	if b.maps != nil {
		ns |= unix.CLONE_NEWUSER
	}
	return ns
}

func soon() time.Time { return time.Now().Add(20 * time.Second) }

// compile emits what tasksvc does around the file system.
func (b *box) compile(p *nsexec.Program, spec *specs.Spec, gate func(string, GateHandler)) {
	opt := b.opt
	if opt.Bundle == "" {
		opt.Bundle = "/"
	}
	opt.Gate, opt.Namespaces = gate, b.namespaces()
	opt.Launcher, _ = launcher()
	if b.maps != nil {
		if spec.Linux == nil {
			spec.Linux = &specs.Linux{}
		}
		spec.Linux.UIDMappings, spec.Linux.GIDMappings = b.maps, b.maps
		gate("idmaps", func(c *nsexec.Child, _ *nsexec.Registers) error {
			for _, file := range []string{"uid_map", "gid_map"} {
				if err := writeIDMap(c.PID(), file, b.maps); err != nil {
					return err
				}
			}
			return nil
		})
	}
	fs := NewCompiler(p, spec, opt)
	fs.Open()
	if b.maps != nil {
		p.BecomeRoot()
	}
	fs.Build()
	fs.Enter()
}

func handleUntil(c *nsexec.Child, handlers map[nsexec.GateID]GateHandler, last nsexec.GateID) error {
	for {
		regs, err := c.AwaitGate(soon())
		if err != nil || regs.Gate() == last {
			return err
		}
		if handlers[regs.Gate()] == nil {
			return fmt.Errorf("no handler for gate %d", regs.Gate())
		}
		if err := handlers[regs.Gate()](c, regs); err != nil {
			return err
		}
		if err := c.Open(); err != nil {
			return err
		}
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
