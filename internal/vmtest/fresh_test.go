package vmtest

import (
	"context"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"

	vmeventsapi "vminit/api/services/vmevents/v1"
	"vminit/internal/microvm"
)

// One guest from its boot to its end: what only a fresh one shows.
func TestFreshGuest(t *testing.T) {
	Require(t)
	disk := filepath.Join(t.TempDir(), "disk")
	out, err := exec.Command("mkfs.ext4", "-q", disk, "16M").CombinedOutput()
	require.NoError(t, err, "%s (Debian: apt-get install e2fsprogs)", out)
	g := Boot(t, func(c *microvm.Config) {
		c.Disks = append(c.Disks, microvm.Disk{Path: disk, Serial: "scratch"})
	})
	ctx := Context(t)

	t.Run("boot steps", func(t *testing.T) {
		tl, err := g.API.Timeline(ctx, &emptypb.Empty{})
		require.NoError(t, err)
		var last int64
		for _, s := range tl.Spans {
			t.Logf("%7.1f ms %6.1f ms  %s", float64(s.StartNs)/1e6, float64(s.EndNs-s.StartNs)/1e6, s.Name)
			require.Empty(t, s.Error, s.Name)
			require.LessOrEqual(t, last, s.StartNs)
			last = s.StartNs
		}
		require.NotEmpty(t, tl.Spans)
	})
	t.Run("idle memory", func(t *testing.T) {
		time.Sleep(time.Second) // for the rest of the boot
		require.LessOrEqual(t, g.usage(ctx, t).rss, uint64(maxIdleRSS))
	})
	t.Run("nothing is left of the boot", func(t *testing.T) {
		info := g.Baseline(ctx, t)
		require.Empty(t, info.zombies)
		require.Empty(t, info.cgroups)
	})
	t.Run("end", func(t *testing.T) { endInOrder(ctx, t, g, disk) })
}

// endInOrder ends a guest in which a container writes to a disk and does not want to
// go. The host hears of its exit, the file system is unmounted, and the machine
// powers off by itself.
func endInOrder(ctx context.Context, t *testing.T, g *Guest, disk string) {
	client, err := g.VM.Client(ctx)
	require.NoError(t, err)
	defer client.Close()
	stream, err := vmeventsapi.NewTTRPCEventsClient(client).Stream(ctx, &emptypb.Empty{})
	require.NoError(t, err)

	spec := Spec("/bin/sh", "-c", "trap '' TERM; echo kept > /mnt/written; echo ready; while :; do sleep 1; done")
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/mnt", Type: "ext4", Source: "/dev/vdb"})
	p, err := g.Create(ctx, "stubborn", spec, false)
	require.NoError(t, err)
	ready := p.Stdout()
	require.NoError(t, p.Start(ctx))
	_, err = ready.Read(make([]byte, 16))
	require.NoError(t, err)

	_, err = g.Task.Shutdown(ctx, &taskv3.ShutdownRequest{})
	require.NoError(t, err)
	_, err = g.Task.State(ctx, &taskv3.StateRequest{ID: p.ID()})
	require.NoError(t, err, "without Now a guest that has containers goes on")

	began := time.Now()
	_, err = g.Task.Shutdown(ctx, &taskv3.ShutdownRequest{Now: true})
	require.NoError(t, err)
	var events []string
	for {
		env, err := stream.Recv()
		if err != nil {
			break
		}
		id, text, err := describe(env)
		require.NoError(t, err)
		if id == p.ID() {
			events = append(events, text)
		}
	}
	require.Equal(t, []string{"create", "start", "exit stubborn 137"}, events)
	select {
	case <-g.VM.Done():
	case <-ctx.Done():
		t.Fatal("the machine does not end")
	}
	t.Logf("the end took %v", time.Since(began).Round(time.Millisecond))
	require.NoError(t, g.VM.Wait())
	console := g.VM.Console(100)
	require.NotContains(t, console, "Kernel panic")
	require.NotContains(t, console, "shutdown step failed")
	require.Contains(t, console, "machine ends")

	written, err := exec.Command("debugfs", "-R", "cat /written", disk).Output()
	require.NoError(t, err)
	require.Equal(t, "kept\n", string(written))
	check, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput()
	require.NoError(t, err, "%s", check)
	require.NotContains(t, string(check), "recovering journal", "it was unmounted")
}
