package vmtest

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// update is Task Update with resources of the runtime specification.
func (g *Guest) update(ctx context.Context, t testing.TB, id string, r *specs.LinuxResources) error {
	t.Helper()
	_, err := g.Task.Update(ctx, &taskv3.UpdateTaskRequest{ID: id, Resources: &anypb.Any{
		TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: marshal(t, r)}})
	return err
}

// guestCgroups runs a script that may do anything, in the tree of the containers.
func (g *Guest) guestCgroups(ctx context.Context, t *testing.T, script string) string {
	t.Helper()
	return g.output(ctx, t, Privileged("/bin/sh", "-ec", "cd /sys/fs/cgroup/vminit; "+script))
}

// TestUpdateEveryController changes the limits of a running container and has
// the container read them. What is not in an update stays as it is.
func TestUpdateEveryController(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	disk := g.output(ctx, t, Spec("/bin/cat", "/sys/block/vda/dev"))
	major, minor, _ := strings.Cut(disk, ":")
	var dev specs.LinuxBlockIODevice
	var err error
	dev.Major, err = strconv.ParseInt(major, 10, 64)
	require.NoError(t, err)
	dev.Minor, err = strconv.ParseInt(minor, 10, 64)
	require.NoError(t, err)

	spec := Spec("/bin/probe", "sleep")
	c := g.Running(ctx, t, spec)
	want := map[string]string{"cpu.weight": "100", "cpu.max": "max 100000", "memory.max": "max", "hugetlb.2MB.max": "max"}
	check := func(step string) {
		t.Helper()
		files := g.LookInside(ctx, t, c.ID(), spec.Process).Cgroup.Files
		for file, value := range want {
			require.Equal(t, value, files[file], "%s: %s", step, file)
		}
	}
	check("before")
	for _, step := range []struct {
		name string
		r    specs.LinuxResources
		want map[string]string
	}{
		{"quota", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(40000)), Period: ptr(uint64(80000)), Burst: ptr(uint64(20000))}},
			map[string]string{"cpu.max": "40000 80000", "cpu.max.burst": "20000"}},
		{"weight", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(512))}}, map[string]string{"cpu.weight": "59"}},
		{"cpuset", specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "1", Mems: "0"}},
			map[string]string{"cpuset.cpus": "1", "cpuset.cpus.effective": "1", "cpuset.mems": "0"}},
		{"io", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
			ThrottleReadBpsDevice:   []specs.LinuxThrottleDevice{{LinuxBlockIODevice: dev, Rate: 64 << 20}},
			ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: dev, Rate: 900}}}},
			map[string]string{"io.max": disk + " rbps=67108864 wbps=max riops=max wiops=900"}},
		{"hugetlb", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}},
			map[string]string{"hugetlb.2MB.max": "4194304"}},
		{"unified", specs.LinuxResources{Unified: map[string]string{"memory.high": "50331648", "pids.max": "77"}},
			map[string]string{"memory.high": "50331648", "pids.max": "77"}},
		{"no quota", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1)), Burst: ptr(uint64(0))}},
			map[string]string{"cpu.max": "max 80000", "cpu.max.burst": "0"}},
	} {
		require.NoError(t, g.update(ctx, t, c.ID(), &step.r), step.name)
		for file, value := range step.want {
			want[file] = value
		}
		check(step.name)
	}

	// The weight has a file of its own with the BFQ scheduler, or there is none.
	err = g.update(ctx, t, c.ID(), &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(500))}})
	files := g.LookInside(ctx, t, c.ID(), spec.Process).Cgroup.Files
	switch bfq, cost := files["io.bfq.weight"], files["io.weight"]; {
	case bfq != "":
		require.NoError(t, err)
		require.Contains(t, strings.Split(bfq, "\n"), "default 500")
	case cost != "":
		require.NoError(t, err)
		require.Contains(t, strings.Split(cost, "\n"), "default 4950") // 10..1000 onto 1..10000
	default:
		require.ErrorContains(t, err, "io.weight")
		require.Equal(t, codes.Unimplemented, status.Code(err), err)
	}
	t.Logf("weight: bfq %q, cost %q, error %v", files["io.bfq.weight"], files["io.weight"], err)

	// One that fails half way changes nothing.
	for name, r := range map[string]*specs.LinuxResources{
		"cpuset":      {CPU: &specs.LinuxCPU{Quota: ptr(int64(10000)), Shares: ptr(uint64(4)), Cpus: "99"}, Memory: &specs.LinuxMemory{Limit: ptr(int64(99 << 20))}},
		"memory.high": {Pids: &specs.LinuxPids{Limit: ptr(int64(5))}, Unified: map[string]string{"memory.high": "much"}},
		"hugetlb":     {CPU: &specs.LinuxCPU{Shares: ptr(uint64(4))}, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 1}}},
	} {
		err := g.update(ctx, t, c.ID(), r)
		require.ErrorContains(t, err, name)
		check("failed update of " + name)
	}
}

// TestLimitsBelowTighterParent: the parent's limits hold whatever a container's
// config allows, and are left alone.
func TestLimitsBelowTighterParent(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	const limits = "cat tight/memory.max tight/pids.max tight/cpuset.cpus tight/cpu.max"
	before := g.guestCgroups(ctx, t, "mkdir -p tight/keep; echo 67108864 > tight/memory.max; [ ! -e tight/memory.swap.max ] || echo 0 > tight/memory.swap.max; "+
		"echo 20 > tight/pids.max; echo 0 > tight/cpuset.cpus; echo 90000 100000 > tight/cpu.max; "+limits)
	require.Equal(t, "67108864\n20\n0\n90000 100000", before)
	wide := func(args ...string) *specs.Spec {
		spec := Spec(args...)
		spec.Linux.CgroupsPath = "/tight/c" + NewID()
		spec.Linux.Resources = &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: ptr(int64(256 << 20))}, Pids: &specs.LinuxPids{Limit: ptr(int64(500))},
			CPU: &specs.LinuxCPU{Quota: ptr(int64(200000)), Period: ptr(uint64(100000)), Cpus: "0-1"},
		}
		return spec
	}
	seen := g.Look(ctx, t, wide())
	for file, value := range map[string]string{"memory.max": "268435456", "pids.max": "500", "cpu.max": "200000 100000", "cpuset.cpus": "0-1", "cpuset.cpus.effective": "0"} {
		require.Equal(t, value, seen.Cgroup.Files[file], file)
	}
	r, err := g.Run(ctx, wide("/bin/probe", "eatmem", "128M"))
	require.NoError(t, err)
	require.Equal(t, uint32(137), r.Code, "128 MB below 64: %s", r.Stderr)
	r, err = g.Run(ctx, wide("/bin/probe", "forkbomb", "100"))
	require.NoError(t, err)
	var bomb struct {
		Started int
		Errno   string
	}
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &bomb), r.Stdout)
	require.Equal(t, "EAGAIN", bomb.Errno)
	require.Less(t, bomb.Started, 20)

	// cpuset 1 is not the parent's to give: the kernel takes the parent's instead.
	other := wide()
	other.Linux.Resources.CPU.Cpus = "1"
	seen = g.Look(ctx, t, other)
	require.Equal(t, "1", seen.Cgroup.Files["cpuset.cpus"])
	require.Equal(t, "0", seen.Cgroup.Files["cpuset.cpus.effective"])

	require.Equal(t, before, g.guestCgroups(ctx, t, limits))
	g.guestCgroups(ctx, t, "rmdir tight/keep tight")
	g.Restored(ctx, t, base)
}

// TestBelowThreadedParent: no container can be in a threaded subtree. It is
// refused, says so, and leaves nothing there.
func TestBelowThreadedParent(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	require.Equal(t, "domain threaded\nthreaded", g.guestCgroups(ctx, t, "mkdir -p thr/t; echo threaded > thr/t/cgroup.type; cat thr/cgroup.type thr/t/cgroup.type"))
	inside := g.Baseline(ctx, t)
	for _, path := range []string{"/thr/c", "/thr/t/c", "/thr/new/c"} {
		for _, limited := range []bool{false, true} {
			spec := Spec("/bin/true")
			spec.Linux.CgroupsPath = path
			if limited {
				spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}, CPU: &specs.LinuxCPU{Shares: ptr(uint64(2))}}
			}
			err := g.refused(ctx, t, &taskv3.CreateTaskRequest{}, marshal(t, spec))
			require.Equal(t, codes.FailedPrecondition, status.Code(err), err)
			require.ErrorContains(t, err, "cgroup /vminit"+path)
			require.ErrorContains(t, err, "threaded")
		}
	}
	g.Restored(ctx, t, inside)
	g.guestCgroups(ctx, t, "rmdir thr/t thr")
	g.Restored(ctx, t, base)
}

// TestOwnThreadedChildren: a container makes its cgroup domain threaded, is in
// a threaded child itself, can be entered, and is deleted with all of it.
func TestOwnThreadedChildren(t *testing.T) {
	g := Shared(t)
	ctx := Context(t)
	base := g.Baseline(ctx, t)
	spec := Spec("/bin/sh", "-ec", "cd /sys/fs/cgroup; mkdir t u; echo threaded > t/cgroup.type; echo threaded > u/cgroup.type; echo '+cpu +pids' > cgroup.subtree_control; "+
		"echo $$ > t/cgroup.threads; sleep 1000 & echo $! > u/cgroup.threads; cat cgroup.type t/cgroup.type; cat /proc/self/cgroup; echo ready; exec sleep 1000")
	addUserNS(spec)
	spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20))}, Pids: &specs.LinuxPids{Limit: ptr(int64(64))}}
	last := &spec.Mounts[len(spec.Mounts)-1]
	require.Equal(t, "cgroup", last.Type)
	last.Options = []string{"nosuid", "noexec", "nodev", "relatime", "rw"}
	p, out := g.ready(ctx, t, spec, "domain threaded\nthreaded\n0::/t\nready\n")
	_ = out

	r, err := g.execs(ctx, t, p.ID(), execAs(spec, "/bin/sh", "-c", "cat /proc/self/cgroup; echo done"))
	require.NoError(t, err)
	require.Zero(t, r.Code, r.Stderr)
	require.Contains(t, r.Stdout, "done")
	require.NoError(t, g.update(ctx, t, p.ID(), &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(50))}}))
	pids, err := g.Task.Pids(ctx, &taskv3.PidsRequest{ID: p.ID()})
	require.NoError(t, err)
	require.Len(t, pids.Processes, 2)
	g.end(t, p)
	g.Restored(ctx, t, base)
}

// execAs is the process of spec with other arguments.
func execAs(spec *specs.Spec, args ...string) *specs.Process {
	p := *spec.Process
	p.Args = args
	return &p
}
