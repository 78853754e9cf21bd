package vmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"

	guestapi "vminit/api/services/guest/v1"
	mountapi "vminit/api/services/mount/v1"
	"vminit/internal/microvm"
)

// TestPlugged: a processor that goes online by itself, as the flag has it; swap that the kernel command line asks for, and an ext4 file system
// that is smaller than its disk and grows when it is mounted with that option.
func TestPlugged(t *testing.T) {
	Require(t)
	dir := t.TempDir()
	small, layer, swap := filepath.Join(dir, "small"), filepath.Join(dir, "layer"), filepath.Join(dir, "swap")
	for _, disk := range []string{small, layer} {
		out, err := exec.Command("mkfs.ext4", "-q", disk, "16M").CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.NoError(t, os.Truncate(disk, 64<<20))
	}
	f, err := os.Create(swap)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(32<<20))
	require.NoError(t, f.Close())
	out, err := exec.Command("mkswap", swap).CombinedOutput()
	require.NoError(t, err, "%s", out)

	g := Boot(t, func(c *microvm.Config) {
		c.Disks = append(c.Disks, microvm.Disk{Path: small, Serial: "small"}, microvm.Disk{Path: swap, Serial: "swap"}, microvm.Disk{Path: layer, Serial: "layer"})
		c.MaxCPUs, c.Flags = c.CPUs+1, append(c.Flags, "-online-cpus")
		c.Params = append(c.Params, "systemd.swap-extra=/dev/disk/by-id/virtio-swap:pri=7")
	})
	ctx := Context(t)
	look := g.Running(ctx, t, Privileged("/bin/sleep", "1000")).ID()

	g.sh(ctx, t, look, eventually("grep -q ^/dev/vdc /proc/swaps"))
	fields := strings.Fields(g.sh(ctx, t, look, "grep ^/dev/vdc /proc/swaps"))
	require.Equal(t, []string{"partition", "32764", "0", "7"}, fields[1:])
	tl, err := g.API.Timeline(ctx, &emptypb.Empty{})
	require.NoError(t, err)
	found := false
	for _, s := range tl.Spans {
		if s.Name == "boot/swap /dev/disk/by-id/virtio-swap:pri=7" {
			found = true
			require.Empty(t, s.Error)
		}
	}
	require.True(t, found)

	require.Equal(t, "0-1\n", g.sh(ctx, t, look, "cat /sys/devices/system/cpu/online"))
	g.plugCPU(ctx, t)
	g.sh(ctx, t, look, eventually("grep -q ^0-2$ /sys/devices/system/cpu/online"))

	blocks := func(disk string) int { // bytes of its file system
		out, err := exec.Command("dumpe2fs", "-h", disk).Output()
		require.NoError(t, err)
		number := func(field string) int {
			_, rest, _ := strings.Cut(string(out), field)
			line, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
			n, err := strconv.Atoi(line)
			require.NoError(t, err)
			return n
		}
		return number("Block count:") * number("Block size:")
	}
	mounts := mountapi.NewTTRPCMountClient(g.Client)
	size := func(options ...string) int {
		_, err := mounts.MountAll(ctx, &mountapi.MountAllRequest{Mounts: []*mountapi.MountSpec{
			{Type: "ext4", Source: "/dev/disk/by-id/virtio-small", Target: "/mnt/small", Options: options}}})
		require.NoError(t, err)
		_, err = g.API.Sync(ctx, &guestapi.SyncRequest{Path: "/mnt/small"})
		require.NoError(t, err)
		_, err = mounts.UnmountAll(ctx, &mountapi.UnmountAllRequest{})
		require.NoError(t, err)
		return blocks(small)
	}
	require.Equal(t, 16<<20, size())
	require.Equal(t, 64<<20, size("x-systemd.growfs"))
	require.Equal(t, 64<<20, size("x-systemd.growfs"), "nothing to do")
	out, err = exec.Command("e2fsck", "-fn", small).CombinedOutput()
	require.NoError(t, err, "%s", out)

	// As one of the mounts that a container's root is made of.
	root := RootMounts()
	grown := append(root[:1:1], &types.Mount{Type: "ext4", Source: "/dev/disk/by-id/virtio-layer", Options: []string{"x-systemd.growfs"}}, root[2])
	r, err := g.RunAt(ctx, Spec("/bin/sh", "-c", "df -k / | tail -1"), grown)
	require.NoError(t, err)
	require.Zero(t, r.Code, r.Stderr)
	_, err = g.API.Sync(ctx, &guestapi.SyncRequest{})
	require.NoError(t, err)
	require.Equal(t, 64<<20, blocks(layer), r.Stdout)

	// What cannot be grown is refused, and nothing is left of it.
	_, err = mounts.MountAll(ctx, &mountapi.MountAllRequest{Mounts: []*mountapi.MountSpec{
		{Type: "tmpfs", Source: "t", Target: "/mnt/t", Options: []string{"x-systemd.growfs"}}}})
	require.ErrorContains(t, err, "only ext4 can be grown")
	require.NotContains(t, g.sh(ctx, t, look, "cat /proc/1/mounts"), "/mnt/t")
}
