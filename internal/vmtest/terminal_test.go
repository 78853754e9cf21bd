package vmtest

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vminit/internal/vmtest/testroot"
)

func terminalSpec(args ...string) *specs.Spec {
	spec := Spec(args...)
	spec.Process.Terminal = true
	spec.Process.ConsoleSize = &specs.Box{Width: 100, Height: 40}
	return spec
}

// The terminal is the process's own: its stdio, its controlling terminal, and
// /dev/console.
func TestTerminal(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	spec := terminalSpec()
	spec.Process.User = specs.User{UID: testroot.User, GID: testroot.User}
	r := g.Look(ctx, t, spec)
	requireClean(t, r)
	for _, f := range r.FDs {
		require.Equal(t, "/dev/pts/0", f.Target)
		require.Equal(t, [2]int{40, 100}, [2]int{f.Rows, f.Cols})
	}
	require.NotNil(t, r.TTY)
	require.Equal(t, 1, r.TTY.Foreground)
	require.Equal(t, [2]int{1, 1}, [2]int{r.SID, r.PGID})
	console, ok := r.Mount("/dev/console")
	require.True(t, ok)
	require.Equal(t, "devpts", console.Type)
	require.Equal(t, "/0", console.Root)
	d, ok := r.Device("/dev/pts/0")
	require.True(t, ok)
	require.Equal(t, [2]uint32{testroot.User, 5}, [2]uint32{d.UID, d.GID})
	require.Equal(t, uint32(0o620), d.Mode)
	c, ok := r.Device("/dev/console")
	require.True(t, ok)
	require.Equal(t, [2]uint32{d.Major, d.Minor}, [2]uint32{c.Major, c.Minor})
}

func (g *Guest) resize(ctx context.Context, p *Process, width, height uint32) error {
	_, err := g.Task.ResizePty(ctx, &taskv3.ResizePtyRequest{ID: p.ID(), ExecID: p.ExecID(), Width: width, Height: height})
	return err
}

// What a person does: look at the size, have the window change, type, press ^C.
func TestTerminalDialogue(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	for _, exec := range []bool{false, true} {
		t.Run(fmt.Sprintf("exec=%t", exec), func(t *testing.T) {
			d := g.dialogue(ctx, t, exec, `trap 'stty size' WINCH; trap 'echo interrupted; exit 5' INT; stty size; while :; do read line && echo "got $line"; done`)
			d.expect("40 100")
			require.NoError(t, g.resize(ctx, d.p, 133, 37))
			d.send("\n") // the shell runs its trap when read returns
			d.expect("37 133")
			d.send("hello\n")
			d.expect("got hello")
			d.send("\x03")
			d.expect("interrupted")
			w, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: d.p.ID(), ExecID: d.p.ExecID()})
			require.NoError(t, err)
			require.Equal(t, uint32(5), w.ExitStatus)
		})
	}
}

// dialogue is a process with a terminal and a person before it.
type dialogue struct {
	t   *testing.T
	p   *Process
	out *bufio.Reader
}

// dialogue starts a script with a terminal of 100 columns and 40 rows.
func (g *Guest) dialogue(ctx context.Context, t *testing.T, exec bool, script string) *dialogue {
	t.Helper()
	spec := terminalSpec("/bin/sh", "-c", script)
	var p *Process
	var err error
	if exec {
		p, err = g.Exec(ctx, g.Running(ctx, t, Spec("/bin/probe", "sleep")).ID(), spec.Process, true)
	} else {
		p, err = g.Create(ctx, "c"+NewID(), spec, true)
	}
	require.NoError(t, err)
	t.Cleanup(func() { g.end(t, p) })
	d := &dialogue{t, p, bufio.NewReader(p.Stdout())}
	require.NoError(t, p.Start(ctx))
	return d
}

func (d *dialogue) send(text string) {
	d.t.Helper()
	_, err := d.p.Stdin().Write([]byte(text))
	require.NoError(d.t, err)
}

// expect reads until a line that ends in want; echoes come before it.
func (d *dialogue) expect(want string) {
	d.t.Helper()
	var seen []string
	for {
		line, err := d.out.ReadString('\n')
		if strings.HasSuffix(line, want+"\r\n") {
			return
		}
		seen = append(seen, line)
		require.NoError(d.t, err, "no %q in %q", want, seen)
	}
}

func TestTerminalErrors(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	for _, x := range []struct{ request, config bool }{{true, false}, {false, true}} {
		spec := Spec("true")
		spec.Process.Terminal = x.config
		err := g.refused(ctx, t, &taskv3.CreateTaskRequest{Terminal: x.request}, marshal(t, spec))
		require.Equal(t, codes.InvalidArgument, status.Code(err), err)
		require.ErrorContains(t, err, "terminal")
	}
	// A terminal needs a devpts to be on.
	spec := terminalSpec("true")
	for i, m := range spec.Mounts {
		if m.Type == "devpts" {
			spec.Mounts[i] = specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs"}
		}
	}
	err := g.refused(ctx, t, &taskv3.CreateTaskRequest{Terminal: true}, marshal(t, spec))
	require.ErrorContains(t, err, "/dev/pts of the container is not a devpts mount")
	g.Restored(ctx, t, base)

	c := g.Running(ctx, t, Spec("/bin/probe", "sleep"))
	err = g.resize(ctx, c, 80, 24)
	require.Equal(t, codes.FailedPrecondition, status.Code(err), err)
}
