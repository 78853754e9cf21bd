package vmtest

import (
	"os"
	"strconv"
	"strings"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"

	"vminit/internal/microvm"
	"vminit/internal/vmtest/probe/report"
)

// addUserNS gives a config a new user namespace.
func addUserNS(s *specs.Spec) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.GIDMappings = s.Linux.UIDMappings
}

// TestOCILimits has a process get more than the daemon has, which in a user
// namespace only its parent can give.
func TestOCILimits(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	for name, edit := range map[string]func(*specs.Spec){"plain": func(*specs.Spec) {}, "userns": addUserNS} {
		spec := Spec()
		edit(spec)
		proc := spec.Process
		proc.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 18, Hard: 1 << 20}, {Type: "RLIMIT_MEMLOCK", Soft: 1 << 40, Hard: 1 << 41}, {Type: "RLIMIT_RTPRIO", Soft: 50, Hard: 60}}
		proc.Scheduler = &specs.Scheduler{Policy: specs.SchedRR, Priority: 10, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}
		proc.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_RT, Priority: 2}
		proc.OOMScoreAdj = new(int)
		*proc.OOMScoreAdj = -500
		check := func(r *report.Report) {
			t.Helper()
			require.Equal(t, report.Rlimit{Soft: 1 << 18, Hard: 1 << 20}, r.Rlimits["NOFILE"], name)
			require.Equal(t, report.Rlimit{Soft: 1 << 40, Hard: 1 << 41}, r.Rlimits["MEMLOCK"], name)
			require.Equal(t, report.Rlimit{Soft: 50, Hard: 60}, r.Rlimits["RTPRIO"], name)
			require.Equal(t, "SCHED_RR", r.Scheduler.Policy, name)
			require.Equal(t, uint32(10), r.Scheduler.Priority, name)
			require.Equal(t, 1<<13|2, r.IOPriority, name)
			require.Equal(t, -500, r.OOMScoreAdj, name)
		}
		check(g.Look(ctx, t, spec))

		idle := Spec("/bin/probe", "sleep")
		edit(idle)
		p := g.Running(ctx, t, idle)
		check(g.LookInside(ctx, t, p.ID(), proc))
	}
}

// TestOCITimeNamespace: clocks that are ahead, with and without a user namespace.
func TestOCITimeNamespace(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	for name, edit := range map[string]func(*specs.Spec){"plain": func(*specs.Spec) {}, "userns": addUserNS} {
		spec := Spec("/bin/cat", "/proc/uptime")
		edit(spec)
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1_000_000, Nanosecs: 5}, "monotonic": {Secs: 2_000_000}}
		r, err := g.Run(ctx, spec)
		require.NoError(t, err, name)
		uptime, err := strconv.ParseFloat(strings.Fields(r.Stdout)[0], 64)
		require.NoError(t, err, name)
		require.Greater(t, uptime, 1e6, name)
	}
}

// TestOCIMemoryPolicy looks at the policy of a process's mappings.
func TestOCIMemoryPolicy(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	spec := Spec("/bin/cat", "/proc/self/numa_maps")
	spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
	r, err := g.Run(ctx, spec)
	require.NoError(t, err)
	require.Contains(t, r.Stdout, "bind=static:0")

	idle := Spec("/bin/probe", "sleep")
	idle.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolInterleave, Nodes: "0"}
	p := g.Running(ctx, t, idle)
	e, err := g.Exec(ctx, p.ID(), Spec("/bin/cat", "/proc/self/numa_maps").Process, false)
	require.NoError(t, err)
	require.NoError(t, e.Start(ctx))
	r, err = e.Finish(ctx)
	require.NoError(t, err)
	require.Contains(t, r.Stdout, "interleave:0", "execs have the container's policy, too")

	spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "1023"}
	err = g.refused(ctx, t, &taskv3.CreateTaskRequest{}, marshal(t, spec))
	require.ErrorContains(t, err, `set the memory policy to MPOL_BIND, nodes "1023": invalid argument`)
	spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolWeightedInterleave, Nodes: "0"}
	err = g.refused(ctx, t, &taskv3.CreateTaskRequest{}, marshal(t, spec))
	require.ErrorContains(t, err, "MPOL_WEIGHTED_INTERLEAVE", "not before Linux 6.9")
}

// TestOCIMixedNamespaces: a new user namespace beside namespaces joined by path,
// and a joined one, with a bundle that only root can get at.
func TestOCIMixedNamespaces(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	shared := []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace}
	plain, inUser := Spec("/bin/probe", "sleep"), Spec("/bin/probe", "sleep")
	addUserNS(inUser)
	for name, x := range map[string]struct {
		holder *specs.Spec
		joined []specs.LinuxNamespaceType
	}{
		"new user":    {plain, shared},
		"joined user": {inUser, append(shared, specs.UserNamespace)},
	} {
		p := g.Running(ctx, t, x.holder)
		pid, err := p.PID(ctx)
		require.NoError(t, err)
		holder := g.LookInside(ctx, t, p.ID(), Spec().Process)

		spec := Spec()
		addUserNS(spec)
		spec.Hostname = ""
		for i, ns := range spec.Linux.Namespaces {
			for _, kind := range x.joined {
				if ns.Type == kind {
					spec.Linux.Namespaces[i].Path = of(pid)(kind)
				}
			}
		}
		if name == "new user" { // these show namespaces that are not its own
			spec.Mounts[4] = specs.Mount{Destination: "/dev/mqueue", Type: "tmpfs", Source: "tmpfs"}
			spec.Mounts[5] = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "ro"}}
		}
		r := g.Look(ctx, t, spec)
		for _, kind := range x.joined {
			require.Equal(t, holder.Namespaces[procName[kind]], r.Namespaces[procName[kind]], "%s: %s", name, kind)
		}
		for _, kind := range []string{"pid", "mnt", "cgroup"} {
			require.NotEqual(t, holder.Namespaces[kind], r.Namespaces[kind], "%s: %s", name, kind)
		}
		require.Equal(t, []string{"0", "100000", "65536"}, strings.Fields(r.UIDMap), name)
		require.Equal(t, 1, r.PID, name)
		require.Equal(t, "guest-box", r.Hostname, name)
	}
}

// TestOCIHome: HOME from the image's passwd, for init and for an exec.
func TestOCIHome(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	spec := Spec()
	spec.Process.Env = []string{"PATH=/bin"}
	home := func(r *report.Report) string { h, _ := r.Getenv("HOME"); return h }
	require.Equal(t, "/root", home(g.Look(ctx, t, spec)))
	spec.Process.User.UID = 1000
	require.Equal(t, "/home", home(g.Look(ctx, t, spec)))
	p := g.Running(ctx, t, Spec("/bin/probe", "sleep"))
	require.Equal(t, "/home", home(g.LookInside(ctx, t, p.ID(), spec.Process)))
}

// loadAppArmor loads testdata/apparmor.bin into the guest's kernel.
func loadAppArmor(t *testing.T, g *Guest) {
	ctx := Context(t)
	profile, err := os.ReadFile("testdata/apparmor.bin")
	require.NoError(t, err)
	spec := Privileged("/bin/sh", "-c", "cat > /sys/kernel/security/apparmor/.replace; cat /sys/kernel/security/apparmor/profiles")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/sys/kernel/security", Type: "securityfs", Source: "securityfs"})
	p, err := g.Create(ctx, "c"+NewID(), spec, true)
	require.NoError(t, err)
	_, err = p.Stdin().Write(profile)
	require.NoError(t, err)
	require.NoError(t, p.Stdin().Close())
	require.NoError(t, p.Start(ctx))
	r, err := p.Finish(ctx)
	require.NoError(t, err)
	require.Contains(t, r.Stdout, "vminit-test (enforce)", r.Stderr)
}

// TestOCIAppArmor confines containers and execs with a real profile.
func TestOCIAppArmor(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	loadAppArmor(t, g)
	const label = "vminit-test (enforce)"
	for name, edit := range map[string]func(*specs.Spec){
		"plain":              func(*specs.Spec) {},
		"with new privs":     func(s *specs.Spec) { s.Process.NoNewPrivileges = false },
		"as a user":          func(s *specs.Spec) { s.Process.User.UID = 1000 },
		"in a new namespace": addUserNS,
	} {
		spec := Spec()
		edit(spec)
		spec.Process.ApparmorProfile = "vminit-test"
		require.Equal(t, label, g.Look(ctx, t, spec).Label, name)
	}
	spec := Spec("/bin/sh", "-c", "cat /etc/hostname; cat /etc/hosts")
	spec.Process.ApparmorProfile = "vminit-test"
	r, err := g.Run(ctx, spec)
	require.NoError(t, err)
	require.Equal(t, "testroot\n", r.Stdout)
	require.Contains(t, r.Stderr, "Permission denied")

	p := g.Running(ctx, t, Spec("/bin/probe", "sleep"))
	proc := Spec().Process
	require.Equal(t, "unconfined", g.LookInside(ctx, t, p.ID(), proc).Label)
	proc.ApparmorProfile = "vminit-test"
	require.Equal(t, label, g.LookInside(ctx, t, p.ID(), proc).Label)

	spec.Process.ApparmorProfile = "vminit-nosuch"
	err = g.refused(ctx, t, &taskv3.CreateTaskRequest{}, marshal(t, spec))
	require.ErrorContains(t, err, `process.apparmorProfile "vminit-nosuch" is not loaded: no such file or directory`)
	spec.Process.ApparmorProfile, spec.Process.SelinuxLabel = "", "system_u:system_r:box_t:s0"
	err = g.refused(ctx, t, &taskv3.CreateTaskRequest{}, marshal(t, spec))
	require.ErrorContains(t, err, "process.selinuxLabel: this kernel runs without SELinux")
}

// TestOCISELinux boots a guest with SELinux. It has no policy, so only initial
// contexts have names, and they are enough to see the label arrive. Our small
// kernel is made without and refuses labels, as any that runs without.
func TestOCISELinux(t *testing.T) {
	g := Boot(t, func(c *microvm.Config) { c.Params = append(c.Params, "security=selinux", "selinux=1", "enforcing=0") })
	ctx := Context(t)
	spec := Spec()
	spec.Process.SelinuxLabel = "unlabeled"
	info, err := g.System.Info(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	if strings.HasSuffix(info.KernelVersion, "-vminit") {
		err := g.refused(ctx, t, &taskv3.CreateTaskRequest{}, marshal(t, spec))
		require.ErrorContains(t, err, "process.selinuxLabel: this kernel runs without SELinux")
		return
	}
	require.Equal(t, "kernel", g.Look(ctx, t, Spec()).Label)
	require.Equal(t, "unlabeled", g.Look(ctx, t, spec).Label)

	p := g.Running(ctx, t, Spec("/bin/probe", "sleep"))
	require.Equal(t, "unlabeled", g.LookInside(ctx, t, p.ID(), spec.Process).Label)

	spec.Process.SelinuxLabel, spec.Process.ApparmorProfile = "", "vminit-test"
	err = g.refused(ctx, t, &taskv3.CreateTaskRequest{}, marshal(t, spec))
	require.ErrorContains(t, err, "process.apparmorProfile: this kernel runs without AppArmor")
}

// TestOCIVersions: config.json of any 1.x up to 1.3 is accepted.
func TestOCIVersions(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	for _, v := range []string{"1.0.0", "1.1.0-rc.3", "1.3.0+dev"} {
		spec := Spec("/bin/true")
		spec.Version = v
		r, err := g.Run(ctx, spec)
		require.NoError(t, err, v)
		require.Zero(t, r.Code)
	}
	for _, v := range []string{"1.4.0", "2.0.0", "0.9.0", "1.0", "latest"} {
		spec := Spec("/bin/true")
		spec.Version = v
		err := g.refused(ctx, t, &taskv3.CreateTaskRequest{}, marshal(t, spec))
		require.ErrorContains(t, err, "ociVersion", v)
		require.ErrorContains(t, err, v)
	}
}

// TestOCICgroupsPath: absolute or not, a path is below the containers' tree, and
// none leads out of it.
func TestOCICgroupsPath(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	for path, want := range map[string]string{"/pods/a": "/vminit/pods/a", "b": "/vminit/b"} {
		spec := Spec()
		spec.Linux.CgroupsPath = path
		spec.Linux.Namespaces = spec.Linux.Namespaces[:5] // all but the cgroup namespace
		require.Equal(t, want, g.Look(ctx, t, spec).Cgroup.Path)
	}
	for _, path := range []string{"../x", "/", "a/../../b", "/a/./b"} {
		spec := Spec("/bin/true")
		spec.Linux.CgroupsPath = path
		require.ErrorContains(t, g.refused(ctx, t, &taskv3.CreateTaskRequest{}, marshal(t, spec)), "cgroupsPath", path)
	}
}
