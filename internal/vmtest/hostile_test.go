package vmtest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	bundleapi "vminit/api/services/bundle/v1"
)

// unharmed runs a test of hostile input on the shared guest, which must be the
// same afterwards: no mount, cgroup, descriptor, goroutine or process more, the
// guest's own files and settings untouched, and new containers must work.
func unharmed(t *testing.T, test func(ctx context.Context, g *Guest)) {
	g := Shared(t)
	ctx := Context(t)
	canary := g.Canary(ctx, t)
	base := g.Baseline(ctx, t)
	test(ctx, g)
	_, err := g.Run(ctx, Spec("/bin/true"))
	require.NoError(t, err)
	g.Restored(ctx, t, base)
	g.Alive(ctx, t, canary)
}

// spoiled is the default config after an edit.
func spoiled(t *testing.T, edit func(*specs.Spec)) []byte {
	spec := Spec("/bin/true")
	edit(spec)
	return marshal(t, spec)
}

func TestHostileConfig(t *testing.T) {
	good := marshal(t, Spec("/bin/true"))
	edit := func(f func(*specs.Spec)) []byte { return spoiled(t, f) }
	namespace := func(n specs.LinuxNamespace) []byte {
		return edit(func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, n) })
	}
	mount := func(m specs.Mount) []byte { return edit(func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) }) }
	unharmed(t, func(ctx context.Context, g *Guest) {
		for _, tc := range []struct {
			name   string
			config []byte
			code   codes.Code
			text   string
		}{
			{"missing", nil, codes.InvalidArgument, "config.json: no such file or directory"},
			{"empty", []byte{}, codes.InvalidArgument, "config.json: the file is empty"},
			{"truncated", good[:len(good)/2], codes.InvalidArgument, "unexpected end of JSON input"},
			{"cut by one byte", good[:len(good)-1], codes.InvalidArgument, "unexpected end of JSON input"},
			{"not JSON", []byte("ociVersion: 1.2.0"), codes.InvalidArgument, "invalid character"},
			{"a list", []byte("[]"), codes.InvalidArgument, "cannot unmarshal array"},
			{"zeros", make([]byte, 1<<20), codes.InvalidArgument, "invalid character"},
			{"nested", bytes.Repeat([]byte("["), 3_900_000), codes.InvalidArgument, "exceeded max depth"},
			{"nested in a field", []byte(`{"ociVersion":"1.2.0","x":` + strings.Repeat(`{"a":`, 700_000)), codes.InvalidArgument, "exceeded max depth"},
			{"null", []byte("null"), codes.InvalidArgument, "ociVersion is missing"},
			{"process is a number", []byte(`{"ociVersion":"1.2.0","process":7}`), codes.InvalidArgument, "cannot unmarshal number"},
			{"version 2", edit(func(s *specs.Spec) { s.Version = "2.0.0" }), codes.InvalidArgument, "ociVersion 2.0.0"},
			{"no root", edit(func(s *specs.Spec) { s.Root = nil }), codes.InvalidArgument, "root.path"},

			{"unknown namespace", namespace(specs.LinuxNamespace{Type: "mind"}), codes.InvalidArgument, `unknown type "mind"`},
			{"namespace twice", namespace(specs.LinuxNamespace{Type: specs.PIDNamespace}), codes.InvalidArgument, "pid is given twice"},
			{"namespace path relative", namespace(specs.LinuxNamespace{Type: specs.TimeNamespace, Path: "proc/1/ns/time"}), codes.InvalidArgument, "not absolute"},
			{"namespace path missing", namespace(specs.LinuxNamespace{Type: specs.TimeNamespace, Path: "/nosuch"}), codes.Unknown, "/nosuch"},
			{"namespace of another kind", namespace(specs.LinuxNamespace{Type: specs.TimeNamespace, Path: "/proc/1/ns/net"}), codes.InvalidArgument, "is not one"},
			{"namespace path no namespace", namespace(specs.LinuxNamespace{Type: specs.TimeNamespace, Path: "/proc/1/maps"}), codes.InvalidArgument, "is not one"},
			{"no mount namespace", edit(func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:1] }), codes.InvalidArgument, "mount namespace"},

			{"no arguments", edit(func(s *specs.Spec) { s.Process.Args = nil }), codes.InvalidArgument, "process.args"},
			{"NUL in an argument", edit(func(s *specs.Spec) { s.Process.Args = []string{"a\x00b"} }), codes.InvalidArgument, ""},
			{"NUL in the environment", edit(func(s *specs.Spec) { s.Process.Env = []string{"A=a\x00b"} }), codes.InvalidArgument, ""},
			{"cwd relative", edit(func(s *specs.Spec) { s.Process.Cwd = "tmp" }), codes.InvalidArgument, "process.cwd"},
			{"cwd below a file", edit(func(s *specs.Spec) { s.Process.Cwd = "/etc/passwd/x" }), codes.Unknown, `"/etc/passwd/x": not a directory`},
			{"uid -1", edit(func(s *specs.Spec) { s.Process.User.UID = 1<<32 - 1 }), codes.InvalidArgument, "process.user"},
			{"unknown rlimit", edit(func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_LUCK"}} }), codes.InvalidArgument, "RLIMIT_LUCK"},
			{"soft above hard", edit(func(s *specs.Spec) {
				s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 2, Hard: 1}}
			}), codes.InvalidArgument, "RLIMIT_NOFILE"},
			{"oomScoreAdj 2000", edit(func(s *specs.Spec) { s.Process.OOMScoreAdj = ptr(2000) }), codes.InvalidArgument, "oomScoreAdj"},

			{"sysctl of the guest", edit(func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "|/bin/sh"} }), codes.InvalidArgument, "kernel.core_pattern"},
			{"sysctl with dots", edit(func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net/../kernel/core_pattern": "x"} }), codes.InvalidArgument, "core_pattern"},
			{"cgroup above", edit(func(s *specs.Spec) { s.Linux.CgroupsPath = "/../../init.scope" }), codes.InvalidArgument, "cgroup"},

			{"mount on the root", mount(specs.Mount{Destination: "/", Type: "tmpfs"}), codes.InvalidArgument, "mount /: the destination"},
			{"mount on the root, disguised", mount(specs.Mount{Destination: "/tmp/..", Type: "tmpfs"}), codes.InvalidArgument, "destination"},
			{"mount inside proc", mount(specs.Mount{Destination: "/proc/self", Type: "tmpfs"}), codes.InvalidArgument, "inside /proc"},
			{"mount of an unknown type", mount(specs.Mount{Destination: "/tmp", Type: "nosuchfs"}), codes.Unknown, "nosuchfs"},
			{"mount with an unknown option", mount(specs.Mount{Destination: "/tmp", Type: "tmpfs", Options: []string{"nosuchoption"}}), codes.Unknown, "/tmp"},
			{"bind of what is not there", mount(specs.Mount{Destination: "/tmp", Type: "bind", Source: "/nosuch", Options: []string{"bind"}}), codes.Unknown, "/nosuch"},
			{"mount over a magic link", mount(specs.Mount{Destination: "/proc/self/root", Type: "tmpfs"}), codes.InvalidArgument, "inside /proc"},

			{"device of an unknown type", edit(func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "z"}} }), codes.InvalidArgument, "/dev/x"},
			{"device on the root", edit(func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/", Type: "c"}} }), codes.InvalidArgument, ""},
			{"unknown syscall action", edit(func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_LUCK"} }), codes.InvalidArgument, "SCMP_ACT_LUCK"},
			{"negative memory", edit(func(s *specs.Spec) {
				s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-7))}}
			}), codes.InvalidArgument, "memory"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				err := g.refused(ctx, t, &taskv3.CreateTaskRequest{}, tc.config)
				require.Equal(t, tc.code, status.Code(err), err)
				require.ErrorContains(t, err, tc.text)
				require.Less(t, len(err.Error()), 1000, "an error is for people to read")
			})
		}
	})
}

func TestHostileRootfs(t *testing.T) {
	good := marshal(t, Spec("/bin/true"))
	unharmed(t, func(ctx context.Context, g *Guest) {
		last := func(m *types.Mount) []*types.Mount { return append(RootMounts()[:2], m) }
		for _, tc := range []struct {
			name   string
			config []byte
			mounts []*types.Mount
			code   codes.Code
			text   string
		}{
			{"no root file system", spoiled(t, func(s *specs.Spec) { s.Root.Path = "nosuch" }), []*types.Mount{}, codes.Unknown, "nosuch: no such file or directory"},
			{"root is a file", spoiled(t, func(s *specs.Spec) { s.Root.Path = "config.json" }), []*types.Mount{}, codes.Unknown, "not a directory"},
			{"unknown type", good, last(&types.Mount{Type: "nosuchfs", Source: "x"}), codes.Unimplemented, `no file system "nosuchfs"`},
			{"no type", good, last(&types.Mount{Source: "x"}), codes.Unimplemented, ""},
			{"not a file system", good, last(&types.Mount{Type: "erofs", Source: "/dev/zero"}), codes.Unknown, "/dev/zero"},
			{"bind of nothing", good, last(&types.Mount{Type: "bind", Source: "/nosuch"}), codes.Unknown, "/nosuch"},
			{"template out of range", good, last(&types.Mount{Type: "format/overlay", Options: []string{"lowerdir={{ mount 7 }}"}}), codes.InvalidArgument, "7"},
			{"template open", good, last(&types.Mount{Type: "format/overlay", Options: []string{"lowerdir={{ mount 0"}}), codes.InvalidArgument, "{{"},
			{"template unknown", good, last(&types.Mount{Type: "format/overlay", Options: []string{"lowerdir={{ exec 0 }}"}}), codes.InvalidArgument, "exec"},
			{"directory outside", good, last(&types.Mount{Type: "mkdir/overlay", Options: []string{"X-containerd.mkdir.path=/etc/x"}}), codes.InvalidArgument, "not inside"},
			{"directory outside, disguised", good, last(&types.Mount{Type: "format/mkdir/overlay", Options: []string{"X-containerd.mkdir.path={{ mount 1 }}/../../../x"}}), codes.InvalidArgument, "not inside"},
			{"overlay without work", good, last(&types.Mount{Type: "format/overlay", Options: []string{"lowerdir={{ mount 0 }}", "upperdir={{ mount 1 }}"}}), codes.Unknown, "overlay"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				err := g.refused(ctx, t, &taskv3.CreateTaskRequest{Rootfs: tc.mounts}, tc.config)
				require.Equal(t, tc.code, status.Code(err), err)
				require.ErrorContains(t, err, tc.text)
			})
		}
		_, err := g.Task.Create(ctx, &taskv3.CreateTaskRequest{ID: "c" + NewID(), Bundle: "/no/such/bundle"})
		require.Equal(t, codes.InvalidArgument, status.Code(err), err)
	})
}

// trap makes in the guest's /run/hostile what a script says.
func (g *Guest) trap(ctx context.Context, t *testing.T, script string) {
	t.Helper()
	spec := Privileged("/bin/sh", "-ec", "mkdir -p /mnt/hostile; cd /mnt/hostile; "+script)
	spec.Mounts[3].Source = "/run"
	r, err := g.Run(ctx, spec)
	require.NoError(t, err)
	require.Zero(t, r.Code, r.Stderr)
}

// A bundle that somebody has put traps into.
func TestHostileBundle(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		defer g.trap(ctx, t, "rm -rf /mnt/hostile")
		for _, tc := range []struct{ name, script, text string }{
			{"100 MB", "truncate -s 100M config.json", "104857600 bytes long"},
			{"link", "ln -s /etc/hosts config.json", ""},
			{"fifo", "mkfifo config.json", "not a regular file"},
			{"directory", "mkdir config.json", "not a regular file"},
			{"device", "mknod config.json c 1 5", ""},
		} {
			t.Run(tc.name, func(t *testing.T) {
				g.trap(ctx, t, "rm -rf ./*; "+tc.script)
				_, err := g.Task.Create(ctx, &taskv3.CreateTaskRequest{ID: "c" + NewID(), Bundle: "/run/hostile", Rootfs: RootMounts()})
				require.ErrorContains(t, err, "config.json")
				require.ErrorContains(t, err, tc.text)
				require.NotEqual(t, codes.OK, status.Code(err))
			})
		}
	})
}

// A root file system whose directories are links: what is mounted must end up
// inside or be refused, and nothing of the guest may be covered.
func TestHostileLinks(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		defer g.trap(ctx, t, "rm -rf /mnt/hostile")
		g.trap(ctx, t, "mkdir -p root/bin root/proc root/dev root/sys root/tmp; cp /bin/busybox root/bin; ln -s / root/link; ln -s ../../../../.. root/up; ln -s /nosuch root/dangling; "+
			"ln -s /proc/1/root root/guest; ln -s loop root/loop")
		root := func() []*types.Mount {
			return []*types.Mount{{Type: "bind", Source: "/run/hostile/root", Options: []string{"rbind"}}}
		}
		try := func(m ...specs.Mount) error {
			spec := Spec("/bin/busybox", "true")
			spec.Linux.ReadonlyPaths, spec.Linux.MaskedPaths = nil, nil
			spec.Mounts = append(spec.Mounts, m...)
			r, err := g.RunAt(ctx, spec, root())
			if err == nil {
				require.Zero(t, r.Code, r.Stderr)
			}
			return err
		}
		require.NoError(t, try())
		for _, dest := range []string{"/link", "/up", "/link/link"} {
			require.ErrorContains(t, try(specs.Mount{Destination: dest, Type: "tmpfs", Source: "x"}), "the destination is the container's root itself", dest)
		}
		require.Error(t, try(specs.Mount{Destination: "/loop", Type: "tmpfs", Source: "x"}))
		for _, dest := range []string{"/link/tmp", "/up/tmp", "/guest", "/guest/etc"} {
			_ = try(specs.Mount{Destination: dest, Type: "tmpfs", Source: "x"}) // inside or refused: the canary looks
		}
		// proc and sysfs must not follow a link at all (CVE-2019-19921).
		g.trap(ctx, t, "rmdir root/proc root/sys; ln -s tmp root/proc; mkdir root/sys")
		require.ErrorContains(t, try(), "mount proc on /proc")
		g.trap(ctx, t, "rm root/proc; mkdir root/proc; rmdir root/sys; ln -s /tmp root/sys")
		require.ErrorContains(t, try(), "mount sysfs on /sys")
		g.trap(ctx, t, "rm root/sys; mkdir root/sys; rm -rf root/dev; ln -s /proc/1/root/dev root/dev")
		_ = try()
	})
}

// A working directory that is one of the runtime's own descriptors, wherever
// it points, is inside the container or refused (CVE-2024-21626).
func TestHostileWorkingDirectory(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		for fd := range 20 {
			spec := Spec("/bin/sh", "-c", "test $(readlink /proc/self/cwd) != / && ls -a . .. /proc/self/cwd/../../../..")
			spec.Process.Cwd = fmt.Sprintf("/proc/self/fd/%d", fd)
			r, err := g.Run(ctx, spec)
			if err == nil {
				require.NotContains(t, r.Stdout, "init", "the guest's root shows through fd %d", fd)
				continue
			}
			require.ErrorContains(t, err, spec.Process.Cwd)
		}
	})
}

// Ids, states and frames that are not right.
func TestHostileRequests(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		for _, id := range []string{"", ".", "..", "../x", "a/b", "a\\b", "a\x00b", "-a", strings.Repeat("a", 77), "ä", "a b", "a\n"} {
			_, err := g.Task.Create(ctx, &taskv3.CreateTaskRequest{ID: id, Bundle: "/run/bundles"})
			require.Equal(t, codes.InvalidArgument, status.Code(err), "%q: %v", id, err)
		}
		for _, id := range []string{"", ".", "..", "../x", "a/b", "a\\b", "a\x00b", strings.Repeat("a", 256)} {
			_, err := g.Bundle.Create(ctx, &bundleapi.CreateRequest{Id: id})
			require.Equal(t, codes.InvalidArgument, status.Code(err), "bundle %q: %v", id, err)
			_, err = g.Bundle.Create(ctx, &bundleapi.CreateRequest{Id: "c" + NewID(), Files: map[string][]byte{id: nil}})
			require.Equal(t, codes.InvalidArgument, status.Code(err), "bundle file %q: %v", id, err)
		}
		for name, call := range map[string]func(id string) error{
			"State":  func(id string) error { _, err := g.Task.State(ctx, &taskv3.StateRequest{ID: id}); return err },
			"Start":  func(id string) error { _, err := g.Task.Start(ctx, &taskv3.StartRequest{ID: id}); return err },
			"Wait":   func(id string) error { _, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: id}); return err },
			"Kill":   func(id string) error { _, err := g.Task.Kill(ctx, &taskv3.KillRequest{ID: id, Signal: 9}); return err },
			"Delete": func(id string) error { _, err := g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: id}); return err },
			"Pids":   func(id string) error { _, err := g.Task.Pids(ctx, &taskv3.PidsRequest{ID: id}); return err },
			"Pause":  func(id string) error { _, err := g.Task.Pause(ctx, &taskv3.PauseRequest{ID: id}); return err },
			"Resume": func(id string) error { _, err := g.Task.Resume(ctx, &taskv3.ResumeRequest{ID: id}); return err },
			"CloseIO": func(id string) error {
				_, err := g.Task.CloseIO(ctx, &taskv3.CloseIORequest{ID: id, Stdin: true})
				return err
			},
			"ResizePty": func(id string) error { _, err := g.Task.ResizePty(ctx, &taskv3.ResizePtyRequest{ID: id}); return err },
		} {
			require.Equal(t, codes.NotFound, status.Code(call("nosuch")), "%s: %v", name, call("nosuch"))
		}

		c := g.Running(ctx, t, Spec("/bin/probe", "sleep"))
		running := g.Baseline(ctx, t)
		_, err := g.Task.Create(ctx, &taskv3.CreateTaskRequest{ID: c.ID(), Bundle: "/run/bundles/" + c.ID(), Rootfs: RootMounts()})
		require.Equal(t, codes.AlreadyExists, status.Code(err), err)
		_, err = g.Bundle.Create(ctx, &bundleapi.CreateRequest{Id: c.ID()})
		require.Equal(t, codes.AlreadyExists, status.Code(err), err)
		require.Equal(t, codes.FailedPrecondition, status.Code(c.Start(ctx)), "started twice")
		_, err = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: c.ID()})
		require.Equal(t, codes.FailedPrecondition, status.Code(err), "deleted while it runs: %v", err)
		_, err = g.Task.Resume(ctx, &taskv3.ResumeRequest{ID: c.ID()})
		require.Equal(t, codes.FailedPrecondition, status.Code(err), err)
		for _, sig := range []uint32{0, 65, 1 << 31} {
			_, err = g.Task.Kill(ctx, &taskv3.KillRequest{ID: c.ID(), Signal: sig})
			require.Equal(t, codes.InvalidArgument, status.Code(err), "signal %d: %v", sig, err)
		}
		_, err = g.Task.Checkpoint(ctx, &taskv3.CheckpointTaskRequest{ID: c.ID()})
		require.Equal(t, codes.Unimplemented, status.Code(err), err)
		// More than a frame holds: refused, and the connection lives on.
		_, err = g.Bundle.Create(ctx, &bundleapi.CreateRequest{Id: "c" + NewID(), Files: map[string][]byte{"config.json": make([]byte, 5<<20)}})
		require.Equal(t, codes.ResourceExhausted, status.Code(err), err)
		g.Restored(ctx, t, running)
		g.end(t, c)
	})
}

// Stdio that cannot be had.
func TestHostileStdio(t *testing.T) {
	good := marshal(t, Spec("/bin/true"))
	unharmed(t, func(ctx context.Context, g *Guest) {
		for _, tc := range []struct {
			stdin, stdout string
			code          codes.Code
		}{
			{"", "gopher://x", codes.InvalidArgument}, {"", "stream://-1", codes.InvalidArgument}, {"", "stream://", codes.InvalidArgument},
			{"", "stream://4294967296", codes.InvalidArgument}, {"", "relative/fifo", codes.InvalidArgument}, {"", "/nosuch/fifo", codes.Unknown},
			{"", "/etc/hosts", codes.InvalidArgument}, {"file:///etc/hosts", "", codes.InvalidArgument}, {"", "file://relative", codes.InvalidArgument},
			{"", "binary:///bin/logger", codes.InvalidArgument}, {"", "\x7f://", codes.InvalidArgument},
		} {
			err := g.refused(ctx, t, &taskv3.CreateTaskRequest{Stdin: tc.stdin, Stdout: tc.stdout}, good)
			require.Equal(t, tc.code, status.Code(err), "%q %q: %v", tc.stdin, tc.stdout, err)
		}
		// A stream that the host never opens: ten seconds, then an error that
		// says what to do.
		err := g.refused(ctx, t, &taskv3.CreateTaskRequest{Stdout: "stream://4000000000"}, good)
		require.Equal(t, codes.NotFound, status.Code(err), err)
		require.ErrorContains(t, err, "the host must connect to the stream port")
	})
}
