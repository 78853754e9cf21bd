package vmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/microvm"
	"vminit/vsockstream"
)

// The classes of docs/security.md that need a whole guest, each with an attack
// that works where the defence is missing; what that looks like is said beside it.

func noRequest() *taskv3.CreateTaskRequest { return &taskv3.CreateTaskRequest{} }

// rawExec is the error of an exec whose process is any JSON.
func (g *Guest) rawExec(ctx context.Context, id, process string) error {
	r := &taskv3.ExecProcessRequest{ID: id, ExecID: "e" + NewID(), Spec: &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: []byte(process)}}
	if _, err := g.Task.Exec(ctx, r); err != nil {
		return err
	}
	_, err := g.Task.Start(ctx, &taskv3.StartRequest{ID: id, ExecID: r.ExecID})
	if err != nil {
		_, _ = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: id, ExecID: r.ExecID})
	}
	return err
}

// capable adds capabilities to those that a process can have.
func capable(p *specs.Process, names ...string) {
	for _, set := range []*[]string{&p.Capabilities.Bounding, &p.Capabilities.Effective, &p.Capabilities.Permitted} {
		*set = append(append([]string{}, *set...), names...)
	}
}

// output is what a container prints that must work.
func (g *Guest) output(ctx context.Context, t *testing.T, spec *specs.Spec) string {
	t.Helper()
	r, err := g.Run(ctx, spec)
	require.NoError(t, err)
	require.Zero(t, r.Code, r.Stderr)
	return strings.TrimSpace(r.Stdout)
}

// attempts has the probe try things in a container.
func (g *Guest) attempts(ctx context.Context, t *testing.T, spec *specs.Spec, words ...string) map[string]string {
	t.Helper()
	spec.Process.Args = append([]string{"/bin/probe", "try"}, words...)
	var went map[string]string
	require.NoError(t, json.Unmarshal([]byte(g.output(ctx, t, spec)), &went))
	return went
}

// ready starts a container and waits until it has printed a line.
func (g *Guest) ready(ctx context.Context, t *testing.T, spec *specs.Spec, line string) (*Process, vsockstream.Conn) {
	t.Helper()
	p, err := g.Create(ctx, "c"+NewID(), spec, false)
	require.NoError(t, err)
	out := p.Stdout()
	require.NoError(t, p.Start(ctx))
	buf := make([]byte, len(line))
	_, err = io.ReadFull(out, buf)
	require.NoError(t, err)
	require.Equal(t, line, string(buf))
	return p, out
}

// execs runs a process in a container.
func (g *Guest) execs(ctx context.Context, t *testing.T, id string, spec *specs.Process) (Result, error) {
	t.Helper()
	p, err := g.Exec(ctx, id, spec, false)
	if err != nil {
		return Result{}, err
	}
	if err := p.Start(ctx); err != nil {
		_ = p.Delete(ctx)
		p.Abandon()
		return Result{}, err
	}
	return p.Finish(ctx)
}

// loader is an ELF program for this machine whose interpreter is another file.
func loader(interpreter string) []byte {
	const header, program = 64, 56
	elf := make([]byte, header+2*program)
	copy(elf, "\x7fELF\x02\x01\x01")
	put := func(at int, v uint64, n int) {
		for i := range n {
			elf[at+i] = byte(v >> (8 * i))
		}
	}
	put(16, 2, 2)  // ET_EXEC
	put(18, 62, 2) // EM_X86_64
	put(20, 1, 4)
	put(24, 0x400000, 8) // entry
	put(32, header, 8)
	put(52, header, 2)
	put(54, program, 2)
	put(56, 2, 2)
	segment := func(i int, kind, flags, offset, size uint64) {
		at := header + i*program
		put(at, kind, 4)
		put(at+4, flags, 4)
		put(at+8, offset, 8)
		put(at+16, 0x400000+offset, 8)
		put(at+32, size, 8)
		put(at+40, size, 8)
		put(at+48, 0x1000, 8)
	}
	path := append([]byte(interpreter), 0)
	segment(0, 3, 4, uint64(len(elf)), uint64(len(path))) // PT_INTERP
	segment(1, 1, 5, 0, uint64(len(elf)+len(path)))       // PT_LOAD
	return append(elf, path...)
}

// CVE-2019-5736: a program that is a link to the one being run, by itself or as
// another's interpreter, makes the daemon's own binary the container's process,
// which can then open it for writing. Without the defence (boot.MakeRootPivotable)
// all of these run vminitd in the container.
func TestThreatOwnBinary(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		g.trap(ctx, t, "mkdir -p evil; printf '#!/proc/self/exe\\n' > evil/script; printf '"+octal(loader("/proc/self/exe"))+"' > evil/loader; chmod 755 evil/*")
		defer g.trap(ctx, t, "rm -rf /mnt/hostile")
		spec := Spec("/bin/probe", "sleep")
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/evil", Type: "bind", Source: "/run/hostile/evil", Options: []string{"bind", "ro"}})
		c := g.Running(ctx, t, spec)
		canary := g.Canary(ctx, t)
		for name, edit := range map[string]func(*specs.Process){
			"link":        func(p *specs.Process) { p.Args = []string{"/proc/self/exe", "--version"} },
			"thread link": func(p *specs.Process) { p.Args = []string{"/proc/thread-self/exe", "--version"} },
			"in PATH":     func(p *specs.Process) { p.Args, p.Env = []string{"exe", "--version"}, []string{"PATH=/proc/self"} },
			"script":      func(p *specs.Process) { p.Args = []string{"/evil/script", "--version"} },
			"loader":      func(p *specs.Process) { p.Args = []string{"/evil/loader", "--version"} },
		} {
			evil := *spec
			process := *spec.Process
			edit(&process)
			evil.Process = &process
			r, err := g.Run(ctx, &evil)
			require.ErrorContains(t, err, "permission denied", "%s: %+v", name, r)
			r, err = g.execs(ctx, t, c.ID(), &process)
			require.ErrorContains(t, err, "permission denied", "exec %s: %+v", name, r)
			g.Alive(ctx, t, canary)
		}
		g.end(t, c)
	})
}

// octal is data as printf(1) takes it.
func octal(data []byte) string {
	var b strings.Builder
	for _, c := range data {
		fmt.Fprintf(&b, "\\%03o", c)
	}
	return b.String()
}

// Kata CVE-2020-2023, CVE-2026-24834: the disks of the guest, and all else that
// is not a container's, can be named but not opened, whatever the config leaves
// out. Without the filter the probe says "ok".
func TestThreatDevices(t *testing.T) {
	devices := map[string]string{"disk": "b 254 0", "console": "c 5 1", "kmsg": "c 1 11", "mem": "c 1 1", "vcs": "c 7 0", "tty0": "c 4 0", "ttyS0": "c 4 64", "loop-control": "c 10 237", "fuse": "c 10 229", "loop0": "b 7 0", "null": "c 1 3"}
	var script, open []string
	for name, numbers := range devices {
		script, open = append(script, "mknod -m 666 /tmp/"+name+" "+numbers), append(open, "open:/tmp/"+name)
	}
	unharmed(t, func(ctx context.Context, g *Guest) {
		canary := g.Canary(ctx, t)
		for name, edit := range map[string]func(*specs.Spec){
			"nothing said": func(s *specs.Spec) {},
			"empty list":   func(s *specs.Spec) { s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{}} },
			"deny forgotten": func(s *specs.Spec) {
				s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "r"}}}
			},
			"in a list of devices": func(s *specs.Spec) {
				s.Linux.Devices = []specs.LinuxDevice{{Path: "/tmp/disk", Type: "b", Major: 254, FileMode: nil}}
			},
		} {
			spec := Spec("/bin/sh", "-c", strings.Join(script, "; ")+"; exec /bin/probe try "+strings.Join(open, " "))
			edit(spec)
			var went map[string]string
			require.NoError(t, json.Unmarshal([]byte(g.output(ctx, t, spec)), &went))
			require.Equal(t, "ok", went["open:/tmp/null"], "%s: the nodes are there", name)
			delete(went, "open:/tmp/null")
			for what, result := range went {
				require.Equal(t, "EPERM", result, "%s: %s", name, what)
			}
			require.Len(t, went, len(devices)-1)
			g.Alive(ctx, t, canary)
		}
		// In a user namespace the guest's own node is bound.
		spec := Spec("/bin/probe", "try", "open:/dev/disk")
		mounts := inUserNamespace(spec)
		addUserNS(spec)
		spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/disk", Type: "b", Major: 254}}
		r, err := g.RunAt(ctx, spec, mounts)
		require.NoError(t, err)
		require.Regexp(t, "EPERM|EACCES", r.Stdout)
		g.Alive(ctx, t, canary)
	})
}

// containerd CVE-2020-15257: the daemon's own ports, from within the guest.
// Without the check of the peer the answer is "ok", as it is for the host.
func TestThreatControlPorts(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		const local = 1
		refused := []string{"closed", "ECONNRESET", "EPIPE", "ENOTCONN"}
		for _, port := range []int{microvm.RPCPort, microvm.StreamPort} {
			for _, cid := range []int{local, int(g.VM.Instance().CID)} {
				what := fmt.Sprintf("vsock:%d,%d", cid, port)
				result := g.attempts(ctx, t, Spec(), what)[what]
				require.Contains(t, refused, result, what)
			}
		}
		// What listens by name in the guest's network namespace could be reached
		// by a container that shares it.
		spec := Spec("/bin/cat", "/proc/net/unix")
		var own []specs.LinuxNamespace
		for _, n := range spec.Linux.Namespaces {
			if n.Type != specs.NetworkNamespace {
				own = append(own, n)
			}
		}
		spec.Linux.Namespaces = own
		require.NotContains(t, g.output(ctx, t, spec), "@")
	})
}

// A keyring with the name that another container's session will have, open to
// all. Where that name can be guessed, "find-key" finds the planted key.
func TestThreatKeyrings(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		id := "c" + NewID()
		attacker, _ := g.ready(ctx, t, Spec("/bin/probe", "keyring", "_ses."+id, "planted"), "ready\n")
		victim, err := g.Create(ctx, id, Spec("/bin/probe", "try", "find-key"), false)
		require.NoError(t, err)
		require.NoError(t, victim.Start(ctx))
		r, err := victim.Finish(ctx)
		require.NoError(t, err)
		require.JSONEq(t, `{"find-key":"ENOKEY"}`, r.Stdout)
		// It can be found by who has it: the test would notice.
		found, err := g.execs(ctx, t, attacker.ID(), Spec("/bin/sh", "-c", "cat /proc/keys | wc -l").Process)
		require.NoError(t, err)
		require.Zero(t, found.Code)
		g.end(t, attacker)
	})
}

// Secrets of a config are nobody else's: not the console's, nor a user's of the
// guest.
func TestThreatSecrets(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		const secret = "TOKEN=xyzzy-plugh"
		spec := Spec("/bin/probe", "sleep")
		spec.Process.Env = append(spec.Process.Env, secret)
		c := g.Running(ctx, t, spec)
		proc := *spec.Process
		proc.Args = []string{"/no/such"}
		err := g.rawExec(ctx, c.ID(), string(marshal(t, proc)))
		require.Error(t, err)
		require.NotContains(t, err.Error(), "xyzzy")
		proc.Args, proc.Env = []string{"/bin/true"}, append(proc.Env, secret+"\x00")
		err = g.rawExec(ctx, c.ID(), string(marshal(t, proc)))
		require.Error(t, err)
		require.NotContains(t, err.Error(), "xyzzy", "an error is for logs")
		spec.Process.Args = []string{"/no/such"}
		_, err = g.Run(ctx, spec)
		require.Error(t, err)
		require.NotContains(t, err.Error(), "xyzzy")
		require.NotContains(t, g.VM.Console(1000), "xyzzy")
		look := Privileged("/bin/sh", "-c", "stat -c '%a %n' /mnt /mnt/"+c.ID()+" /mnt/"+c.ID()+"/config.json")
		look.Mounts[3].Source = "/run/bundles"
		for line := range strings.Lines(g.output(ctx, t, look)) {
			mode, name, _ := strings.Cut(strings.TrimSpace(line), " ")
			require.True(t, strings.HasSuffix(mode, "0"), "%s of %s is for others to read", mode, name)
		}
		g.end(t, c)
	})
}

// A bundle whose own directories are links to the guest's. What is mounted
// there must not be mounted elsewhere: the canary would miss files of /etc.
func TestThreatBundleLinks(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		defer g.trap(ctx, t, "rm -rf /mnt/hostile")
		canary := g.Canary(ctx, t)
		for name, script := range map[string]string{
			"rootfs": "ln -s /etc rootfs", "rootfs upwards": "ln -s ../../etc rootfs", "mounts": "mkdir -p /mnt/hostile/x; ln -s /etc mounts",
			"a layer": "mkdir mounts; ln -s /etc mounts/0", "a layer's directory": "mkdir -p mounts/1; ln -s /etc mounts/1/upper", "rootfs is a file": "echo > rootfs",
		} {
			g.trap(ctx, t, "rm -rf ./*; cat > config.json <<'E'\n"+string(marshal(t, Spec("/bin/true")))+"\nE\n"+script)
			r := noRequest()
			r.ID, r.Bundle, r.Rootfs = "c"+NewID(), "/run/hostile", RootMounts()
			_, err := g.Task.Create(ctx, r)
			if name == "a layer's directory" { // covered by the tmpfs
				require.NoError(t, err)
				_, err = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: r.ID})
				require.NoError(t, err)
			} else {
				require.Error(t, err, name)
			}
			g.Alive(ctx, t, canary)
		}
		// The bundle itself may be reached through a link: its path is the host's.
		g.trap(ctx, t, "rm -rf ./*; mkdir real; ln -s real bundle; cat > real/config.json <<'E'\n"+string(marshal(t, Spec("/bin/true")))+"\nE\n")
		r := noRequest()
		r.ID, r.Bundle, r.Rootfs = "c"+NewID(), "/run/hostile/bundle", RootMounts()
		_, err := g.Task.Create(ctx, r)
		require.NoError(t, err)
		_, err = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: r.ID})
		require.NoError(t, err)
		g.Alive(ctx, t, canary)
	})
}
