package vmtest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	systemapi "vminit/api/services/system/v1"
	"vminit/internal/microvm"
)

// qmp runs one command of QEMU's.
func (g *Guest) qmp(ctx context.Context, t *testing.T, command string, args, result any) {
	t.Helper()
	q, err := g.VM.Instance().Monitor(ctx, nil)
	require.NoError(t, err)
	defer q.Close()
	require.NoError(t, q.Execute(ctx, command, args, result))
}

// plugCPU plugs the one processor in that there is room for.
func (g *Guest) plugCPU(ctx context.Context, t *testing.T) {
	t.Helper()
	var slots []struct {
		Type  string
		Props map[string]int
		Path  string `json:"qom-path"`
	}
	g.qmp(ctx, t, "query-hotpluggable-cpus", nil, &slots)
	for _, s := range slots {
		if s.Path == "" {
			args := map[string]any{"driver": s.Type, "id": "cpu2"}
			for name, v := range s.Props {
				args[name] = v
			}
			g.qmp(ctx, t, "device_add", args, nil)
		}
	}
}

// eventually is a script that ends well as soon as a condition holds.
func eventually(condition string) string {
	return "i=0; until " + condition + `; do i=$((i+1)); [ $i -lt 600 ] || exit 9; sleep 0.05; done`
}

// TestHotplug plugs a disk, a processor and memory into a running machine.
func TestHotplug(t *testing.T) {
	var root string
	g := Boot(t, func(c *microvm.Config) {
		c.HotplugSlots, c.MaxCPUs, c.MaxMemoryMiB = 2, c.CPUs+1, 2*c.MemoryMiB
		root = c.Disks[0].Path
	})
	ctx := Context(t)

	// A disk that never comes, beside the rest of the test.
	never := make(chan error, 1)
	began := time.Now()
	r := &taskv3.CreateTaskRequest{ID: "c" + NewID(), Rootfs: RootMountsOf("/dev/disk/by-id/virtio-never")}
	require.NoError(t, g.MakeBundle(ctx, r, marshal(t, Spec("/bin/true"))))
	go func() { _, err := g.Task.Create(ctx, r); never <- err }()

	look := g.Running(ctx, t, Privileged("/bin/sleep", "1000")).ID()
	require.Equal(t, "../../vda\n", g.sh(ctx, t, look, "readlink /dev/disk/by-id/virtio-root"))

	t.Run("disk", func(t *testing.T) {
		type ended struct {
			r   Result
			err error
		}
		waiting := make(chan ended, 1)
		go func() {
			r, err := g.RunAt(ctx, Spec("/bin/echo", "from the late disk"), RootMountsOf("/dev/disk/by-id/virtio-late"))
			waiting <- ended{r, err}
		}()
		select {
		case e := <-waiting:
			require.Fail(t, "it did not wait for the disk", "%v %v", e.r, e.err)
		case <-time.After(time.Second):
		}
		g.qmp(ctx, t, "blockdev-add", map[string]any{"driver": "raw", "node-name": "late", "read-only": true,
			"file": map[string]any{"driver": "file", "filename": root, "read-only": true, "locking": "off"}}, nil)
		g.qmp(ctx, t, "device_add", map[string]any{"driver": "virtio-blk-pci", "id": "late", "drive": "late", "serial": "late", "bus": "slot0"}, nil)
		e := <-waiting
		require.NoError(t, e.err)
		require.Equal(t, "from the late disk\n", e.r.Stdout)
		require.Equal(t, "../../vdb\n../../vdb\n", g.sh(ctx, t, look, "cd /dev/disk; readlink by-id/virtio-late; readlink by-path/pci-$(basename $(dirname $(readlink -f /sys/block/vdb/device)))"))
		g.qmp(ctx, t, "device_del", map[string]any{"id": "late"}, nil)
		g.sh(ctx, t, look, eventually("[ ! -L /dev/disk/by-id/virtio-late ]"))
		require.Equal(t, "virtio-root\n", g.sh(ctx, t, look, "ls /dev/disk/by-id"))
	})

	t.Run("processor", func(t *testing.T) {
		online := func() string { return g.sh(ctx, t, look, "cat /sys/devices/system/cpu/online") }
		require.Equal(t, "0-1\n", online())
		_, err := g.System.OnlineCPU(ctx, &systemapi.OnlineCPURequest{CpuId: 2})
		require.Equal(t, codes.NotFound, status.Code(err), "%v", err)
		g.plugCPU(ctx, t)
		// Not waited for: the kernel may learn of it after the request.
		_, err = g.System.OnlineCPU(ctx, &systemapi.OnlineCPURequest{CpuId: 2})
		require.NoError(t, err)
		require.Equal(t, "0-2\n", online())
		require.Equal(t, "3\n", g.sh(ctx, t, look, "nproc"))
		_, err = g.System.OnlineCPU(ctx, &systemapi.OnlineCPURequest{CpuId: 2})
		require.Equal(t, codes.FailedPrecondition, status.Code(err), "%v", err)
		_, err = g.System.OfflineCPU(ctx, &systemapi.OfflineCPURequest{CpuId: 2})
		require.NoError(t, err)
		_, err = g.System.OfflineCPU(ctx, &systemapi.OfflineCPURequest{CpuId: 1})
		require.NoError(t, err)
		require.Equal(t, "0\n", online())
		_, err = g.System.OnlineCPU(ctx, &systemapi.OnlineCPURequest{CpuId: 1})
		require.NoError(t, err)
		require.Equal(t, "0-1\n", online())
	})

	const memTotal = `sed -n 's/MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo`
	total := func() int {
		kb, err := strconv.Atoi(strings.TrimSpace(g.sh(ctx, t, look, memTotal)))
		require.NoError(t, err)
		return kb
	}
	t.Run("memory", func(t *testing.T) {
		const plugged = 256 << 10 // KiB
		before := total()
		g.qmp(ctx, t, "object-add", map[string]any{"qom-type": "memory-backend-memfd", "id": "more", "share": true, "size": plugged << 10}, nil)
		g.qmp(ctx, t, "device_add", map[string]any{"driver": "pc-dimm", "id": "dimm0", "memdev": "more"}, nil)
		g.sh(ctx, t, look, eventually(fmt.Sprintf("[ $(%s) -ge %d ]", memTotal, before+plugged)))
		require.Equal(t, before+plugged, total())
		// A host that asks for what the guest has done by itself is not refused.
		block := strings.TrimSpace(g.sh(ctx, t, look, "cd /sys/devices/system/memory; ls -d memory* | sed s/memory// | sort -n | tail -1"))
		id, err := strconv.Atoi(block)
		require.NoError(t, err)
		_, err = g.System.OnlineMemory(ctx, &systemapi.OnlineMemoryRequest{MemoryId: uint32(id)})
		require.NoError(t, err)
	})

	// virtio-mem: one device whose size the host asks to change. The driver adds
	// and onlines blocks, and gives them back.
	t.Run("virtio-mem", func(t *testing.T) {
		const size = 512 << 10 // KiB
		g.qmp(ctx, t, "object-add", map[string]any{"qom-type": "memory-backend-memfd", "id": "elastic", "share": true, "size": size << 10}, nil)
		g.qmp(ctx, t, "device_add", map[string]any{"driver": "virtio-mem-pci", "id": "vm0", "memdev": "elastic", "requested-size": 0, "bus": "slot1"}, nil)
		request := func(kib int) {
			g.qmp(ctx, t, "qom-set", map[string]any{"path": "/machine/peripheral/vm0", "property": "requested-size", "value": kib << 10}, nil)
		}
		given := func() (bytes int) {
			g.qmp(ctx, t, "qom-get", map[string]any{"path": "/machine/peripheral/vm0", "property": "size"}, &bytes)
			return bytes
		}
		before := total()
		request(256 << 10)
		g.sh(ctx, t, look, eventually(fmt.Sprintf("[ $(%s) -ge %d ]", memTotal, before+256<<10)))
		require.Equal(t, 256<<20, given())
		require.NotContains(t, g.sh(ctx, t, look, "cat /sys/devices/system/memory/memory*/state"), "offline")
		request(0)
		g.sh(ctx, t, look, eventually(fmt.Sprintf("[ $(%s) -lt %d ]", memTotal, before+256<<10)))
	})

	err := <-never
	require.ErrorContains(t, err, "/dev/disk/by-id/virtio-never: it did not appear within 10s")
	require.Equal(t, codes.DeadlineExceeded, status.Code(err))
	t.Logf("the disk that never came was reported after %s", time.Since(began))
}
