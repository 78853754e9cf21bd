package vmtest

import (
	"bufio"
	"context"
	"io"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	mountapi "vminit/api/services/mount/v1"
	"vminit/internal/microvm"
)

// lasting is a container that, asked to end by a signal, writes last words to a
// disk and to its stdout and exits with 7.
type lasting struct {
	*Process
	out *bufio.Reader
}

// lastWords is more than a pipe holds.
const lastWords = 100_000

func (g *Guest) lasting(ctx context.Context, t *testing.T, signal, image string) lasting {
	t.Helper()
	s := Spec("/bin/sh", "-c", "trap 'echo "+signal+" > /data/"+signal+"; head -c 100000 /dev/zero | tr \"\\0\" x; exit 7' "+signal+
		"; echo ready; while :; do sleep 1000 & wait; done")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/mnt/data", Options: []string{"rbind"}})
	if image != "" {
		s.Annotations = map[string]string{"org.opencontainers.image.stopSignal": image}
	}
	p, err := g.Create(ctx, "c"+NewID(), s, false)
	require.NoError(t, err)
	t.Cleanup(p.Abandon)
	l := lasting{p, bufio.NewReader(p.Stdout())}
	require.NoError(t, p.Start(ctx))
	line, err := l.out.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "ready\n", line)
	return l
}

// TestPower ends machines as a host does that knows nothing of containers, and
// looks at what they leave behind.
func TestPower(t *testing.T) {
	Require(t)
	disk := filepath.Join(t.TempDir(), "disk")
	out, err := exec.Command("mkfs.ext4", "-q", disk, "16M").CombinedOutput()
	require.NoError(t, err, "%s", out)
	boot := func(t *testing.T) (context.Context, *Guest, *observed) {
		g := Boot(t, func(c *microvm.Config) {
			c.Disks = append(c.Disks, microvm.Disk{Path: disk, Serial: "data"})
			c.Flags = append(c.Flags, "-log-format=json")
		})
		ctx := Context(t)
		_, err := g.Run(ctx, Spec("/bin/true")) // boot is over
		require.NoError(t, err)
		_, err = mountapi.NewTTRPCMountClient(g.Client).MountAll(ctx, &mountapi.MountAllRequest{Mounts: []*mountapi.MountSpec{
			{Type: "ext4", Source: "/dev/disk/by-id/virtio-data", Target: "/mnt/data"}}})
		require.NoError(t, err)
		return ctx, g, g.observe(ctx, t)
	}
	// ended checks that containers got their signal, that the host got all they
	// had to say and their exits, and that the machine has ended in order.
	ended := func(t *testing.T, g *Guest, events *observed, all ...lasting) {
		for _, l := range all {
			words, err := io.ReadAll(l.out)
			require.NoError(t, err)
			require.Equal(t, lastWords, len(words))
			events.of(t, l.ID(), "exit "+l.ID()+" 7")
		}
		select {
		case <-g.VM.Done():
			require.NoError(t, g.VM.Wait())
		case <-time.After(time.Minute):
			require.Fail(t, "it did not power off")
		}
	}

	t.Run("button", func(t *testing.T) {
		ctx, g, events := boot(t)
		plain, image := g.lasting(ctx, t, "TERM", ""), g.lasting(ctx, t, "USR1", "SIGUSR1")
		// A paused one is resumed for its end.
		_, err := g.Task.Pause(ctx, &taskv3.PauseRequest{ID: image.ID()})
		require.NoError(t, err)
		g.qmp(ctx, t, "system_powerdown", nil, nil)
		ended(t, g, events, plain, image)
		require.Contains(t, g.VM.Console(50), `"msg":"shutting down","reason":"the power button was pressed"`)
	})
	t.Run("ctrl-alt-del", func(t *testing.T) {
		ctx, g, events := boot(t)
		l := g.lasting(ctx, t, "TERM", "SIGTERM")
		require.Equal(t, "TERM\nUSR1\n", g.sh(ctx, t, l.ID(), "cat /data/TERM /data/USR1; rm /data/TERM"))
		var keys []map[string]string
		for _, k := range []string{"ctrl", "alt", "delete"} {
			keys = append(keys, map[string]string{"type": "qcode", "data": k})
		}
		g.qmp(ctx, t, "send-key", map[string]any{"keys": keys}, nil)
		ended(t, g, events, l)
		require.Contains(t, g.VM.Console(50), `"msg":"shutting down","reason":"signal interrupt"`)
	})

	out, err = exec.Command("e2fsck", "-fn", disk).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "recovering journal", "it was not unmounted")
	out, err = exec.Command("debugfs", "-R", "cat /TERM", disk).Output()
	require.NoError(t, err)
	require.Equal(t, "TERM\n", string(out))
}
