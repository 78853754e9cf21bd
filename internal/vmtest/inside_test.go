package vmtest

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"vminit/internal/vmtest/probe/report"
	"vminit/internal/vmtest/testroot"
)

func ptr[T any](v T) *T { return &v }

// requireClean checks that the daemon has handed down nothing it did not mean to.
func requireClean(t *testing.T, r *report.Report) {
	t.Helper()
	require.Empty(t, r.Signals.Blocked)
	require.Empty(t, r.Signals.Ignored)
	require.Empty(t, r.Signals.Pending)
	var open []int
	for _, f := range r.FDs {
		open = append(open, f.FD)
	}
	require.Equal(t, []int{0, 1, 2}, open, "of the daemon's descriptors none may be open: %v", r.FDs)
}

// The default container: what a host gets that asks for nothing special.
func TestInsideDefault(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	spec := Spec()
	spec.Domainname = "example.org"
	r := g.Look(ctx, t, spec)

	requireClean(t, r)
	require.Equal(t, "/bin/probe", r.Exe)
	require.Equal(t, "/bin/probe", r.Init, "/proc/1/exe is the container's own init, not the daemon")
	require.Equal(t, []string{"/bin/probe", "report"}, r.Argv)
	require.Equal(t, spec.Process.Env, r.Env)
	require.Equal(t, "/", r.Cwd)
	require.Equal(t, 1, r.PID)
	require.Equal(t, "guest-box", r.Hostname)
	require.Equal(t, "example.org", r.Domainname)

	require.Equal(t, report.IDs{}, r.UIDs)
	require.Equal(t, report.IDs{}, r.GIDs)
	require.Empty(t, r.Groups, "the daemon's groups are not the container's")
	require.ElementsMatch(t, spec.Process.Capabilities.Bounding, r.Capabilities.Bounding)
	require.ElementsMatch(t, spec.Process.Capabilities.Effective, r.Capabilities.Effective)
	require.ElementsMatch(t, spec.Process.Capabilities.Permitted, r.Capabilities.Permitted)
	require.Empty(t, r.Capabilities.Inheritable)
	require.Empty(t, r.Capabilities.Ambient)
	require.True(t, r.NoNewPrivs)
	require.Equal(t, 0o022, r.Umask)
	require.Zero(t, r.OOMScoreAdj, "the daemon's own protection is not inherited")
	require.Equal(t, report.Rlimit{Soft: 1024, Hard: 1024}, r.Rlimits["NOFILE"])
	require.Zero(t, r.Seccomp)
	require.Contains(t, r.Keyring, ";_ses.c", "the session keyring is the container's own")

	require.Equal(t, "0::/", r.Cgroup.Raw, "with a cgroup namespace the container's cgroup is the root")
	require.True(t, r.Cgroup.Visible)
	require.False(t, r.Cgroup.Writable)
	require.Len(t, r.Interfaces, 1)
	require.True(t, r.Interfaces[0].Loopback && r.Interfaces[0].Up)
}

// pivot_root really happened: nothing of the guest is mounted any more, and all
// the spec asks for is, in its order.
func TestInsideMounts(t *testing.T) {
	g := Shared(t)
	spec := Spec()
	ctx := Context(t)
	r := g.Look(ctx, t, spec)
	// A path that this kernel does not have is not covered: the small one has
	// neither sysrq nor kcore.
	masked := []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"}
	look := g.Running(ctx, t, Privileged("/bin/sleep", "1000")).ID()
	have := strings.Fields(g.sh(ctx, t, look, "ls -d "+strings.Join(append(masked, spec.Linux.ReadonlyPaths...), " ")+" 2>/dev/null || :"))
	hasNot := func(p string) bool { return !slices.Contains(have, p) }
	for _, p := range []string{"/proc/keys", "/sys/firmware", "/proc/sys", "/proc/irq"} {
		require.Contains(t, have, p)
	}
	readonly := slices.DeleteFunc(slices.Clone(spec.Linux.ReadonlyPaths), hasNot)
	masked = slices.DeleteFunc(masked, hasNot)

	root := r.Mounts[0]
	require.Equal(t, "/", root.Target)
	require.Equal(t, "/", root.Root)
	require.Equal(t, "overlay", root.Type)
	require.False(t, slices.ContainsFunc(r.Mounts, func(m report.Mount) bool { return m.ID == root.Parent }))
	want := []string{"/"}
	for _, m := range spec.Mounts {
		want = append(want, m.Destination)
		got, ok := r.Mount(m.Destination)
		require.True(t, ok, m.Destination)
		require.Equal(t, strings.Replace(m.Type, "cgroup", "cgroup2", 1), got.Type)
		for _, o := range m.Options {
			if slices.Contains([]string{"nosuid", "noexec", "nodev", "ro", "relatime"}, o) {
				require.Contains(t, got.Options, o, m.Destination)
			}
		}
	}
	for _, p := range readonly {
		m, ok := r.Mount(p)
		require.True(t, ok, p)
		require.Contains(t, m.Options, "ro", p)
	}
	want = append(want, readonly...)
	var targets []string
	for _, m := range r.Mounts {
		require.NotContains(t, strings.Join(m.Optional, " "), "shared:", "%s must not propagate", m.Raw)
		if !slices.Contains(spec.Linux.MaskedPaths, m.Target) {
			targets = append(targets, m.Target)
		}
	}
	require.Equal(t, want, targets)
	for _, p := range masked {
		m, ok := r.Mount(p)
		require.True(t, ok, "%s is masked", p)
		require.Contains(t, []string{"devtmpfs", "tmpfs"}, m.Type)
	}
}

func TestInsideDevices(t *testing.T) {
	g := Shared(t)
	r := g.Look(Context(t), t, Spec())
	type node struct {
		kind         string
		mode         uint32
		major, minor uint32
		link         string
	}
	got := map[string]node{}
	for _, d := range r.Devices {
		if d.Type == "link" {
			d.Mode = 0
		}
		got[strings.TrimPrefix(d.Path, "/dev/")] = node{d.Type, d.Mode, d.Major, d.Minor, d.Link}
	}
	delete(got, "/dev")
	require.Equal(t, map[string]node{
		"null": {kind: "char", mode: 0o666, major: 1, minor: 3}, "zero": {kind: "char", mode: 0o666, major: 1, minor: 5},
		"full": {kind: "char", mode: 0o666, major: 1, minor: 7}, "random": {kind: "char", mode: 0o666, major: 1, minor: 8},
		"urandom": {kind: "char", mode: 0o666, major: 1, minor: 9}, "tty": {kind: "char", mode: 0o666, major: 5, minor: 0},
		"fd": {kind: "link", link: "/proc/self/fd"}, "stdin": {kind: "link", link: "/proc/self/fd/0"},
		"stdout": {kind: "link", link: "/proc/self/fd/1"}, "stderr": {kind: "link", link: "/proc/self/fd/2"},
		"ptmx": {kind: "link", link: "pts/ptmx"},
		"pts":  {kind: "dir", mode: 0o755}, "pts/ptmx": {kind: "char", mode: 0o666, major: 5, minor: 2},
		"shm": {kind: "dir", mode: 0o777 | 0o1000}, "mqueue": {kind: "dir", mode: 0o777 | 0o1000},
	}, got)
}

// Everything about the process that a spec can say.
func TestInsideProcess(t *testing.T) {
	g := Shared(t)
	spec := Spec()
	spec.Process = &specs.Process{
		Cwd: "/var/tmp", Env: []string{"PATH=/bin", "GREETING=hello world", "EMPTY="},
		User: specs.User{UID: testroot.User, GID: testroot.User, AdditionalGids: []uint32{testroot.Extra, 5}, Umask: ptr(uint32(0o137))},
		Capabilities: &specs.LinuxCapabilities{
			Bounding:    []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SYS_TIME"},
			Permitted:   []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"},
			Inheritable: []string{"CAP_KILL", "CAP_NET_RAW"},
			Effective:   []string{"CAP_KILL"},
			Ambient:     []string{"CAP_NET_RAW"},
		},
		Rlimits: []specs.POSIXRlimit{
			{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0},
			{Type: "RLIMIT_NPROC", Soft: 77, Hard: 78}, {Type: "RLIMIT_MEMLOCK", Soft: 1 << 20, Hard: 1<<64 - 1},
		},
		OOMScoreAdj: ptr(321),
	}
	r := g.Look(Context(t), t, spec)

	requireClean(t, r)
	require.Equal(t, "/var/tmp", r.Cwd)
	require.Equal(t, append(spec.Process.Env, "HOME=/home"), r.Env, "HOME is added from the container's /etc/passwd, as runc does")
	require.Equal(t, report.IDs{Real: 1000, Effective: 1000, Saved: 1000, FS: 1000}, r.UIDs)
	require.Equal(t, report.IDs{Real: 1000, Effective: 1000, Saved: 1000, FS: 1000}, r.GIDs)
	require.Equal(t, []int{5, 1001}, r.Groups)
	require.Equal(t, 0o137, r.Umask)
	require.Equal(t, 321, r.OOMScoreAdj)
	require.False(t, r.NoNewPrivs)
	// capabilities(7): after an execve by a user the sets are made of the
	// ambient and inheritable ones, and the file has none of its own.
	require.Equal(t, report.Capabilities{
		Bounding:    []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SYS_TIME"},
		Inheritable: []string{"CAP_KILL", "CAP_NET_RAW"},
		Permitted:   []string{"CAP_NET_RAW"}, Effective: []string{"CAP_NET_RAW"}, Ambient: []string{"CAP_NET_RAW"},
	}, r.Capabilities)
	require.Equal(t, report.Rlimit{Soft: 100, Hard: 200}, r.Rlimits["NOFILE"])
	require.Equal(t, report.Rlimit{Soft: 0, Hard: 0}, r.Rlimits["CORE"])
	require.Equal(t, report.Rlimit{Soft: 77, Hard: 78}, r.Rlimits["NPROC"])
	require.Equal(t, report.Rlimit{Soft: 1 << 20, Hard: 1<<64 - 1}, r.Rlimits["MEMLOCK"])
}

// A container of which the spec asks nothing but a process.
func TestInsideWithoutCapabilities(t *testing.T) {
	g := Shared(t)
	spec := Spec()
	spec.Process.Capabilities, spec.Process.Rlimits = nil, nil
	r := g.Look(Context(t), t, spec)
	require.Equal(t, report.Capabilities{Bounding: []string{}, Permitted: []string{}, Effective: []string{}, Inheritable: []string{}, Ambient: []string{}}, r.Capabilities)
}
