package vmtest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/microvm"
)

// TestMMIO is a guest on QEMU's machine without PCI: its disks are there in
// their order, and it powers off when it is asked to.
func TestMMIO(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data")
	require.NoError(t, os.WriteFile(data, make([]byte, 1<<20), 0o600))
	g := Boot(t, func(c *microvm.Config) {
		c.Machine, c.CPUs = microvm.MachineMMIO, 1
		c.Disks = append(c.Disks, microvm.Disk{Path: data, Serial: "data"})
	})
	ctx := Context(t)
	look := g.Running(ctx, t, Privileged("/bin/sleep", "1000")).ID()
	require.Equal(t, "rootdata", g.sh(ctx, t, look, "cat /sys/block/vda/serial /sys/block/vdb/serial"))
	require.Equal(t, "../../vdb\n", g.sh(ctx, t, look, "readlink /dev/disk/by-id/virtio-data"))
	require.Empty(t, g.sh(ctx, t, look, "ls /sys/bus/pci/devices"))
}
