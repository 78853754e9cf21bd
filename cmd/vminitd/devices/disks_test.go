package devices

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/sys"
)

// machine is a sysfs and a /dev to play with.
type machine struct {
	t *testing.T
	Disks
}

func newMachine(t *testing.T) *machine {
	dir := t.TempDir()
	m := &machine{t, Disks{Sysfs: dir + "/sys", Dev: dir + "/dev", Log: slog.New(slog.DiscardHandler)}}
	require.NoError(t, os.MkdirAll(m.Sysfs+"/class/block", 0o755))
	return m
}

// plug adds a block device: path is below /sys/devices, files are its attributes.
func (m *machine) plug(path string, files map[string]string) {
	dir := filepath.Join(m.Sysfs, "devices", path)
	require.NoError(m.t, os.MkdirAll(dir, 0o755))
	for name, content := range files {
		require.NoError(m.t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	require.NoError(m.t, os.Symlink("../../devices/"+path, filepath.Join(m.Sysfs, "class/block", filepath.Base(path))))
}

func (m *machine) unplug(name string) {
	require.NoError(m.t, os.Remove(filepath.Join(m.Sysfs, "class/block", name)))
}

// scanned scans and returns the links there are now.
func (m *machine) scanned(wantChange bool) map[string]string {
	m.t.Helper()
	changed, err := m.scan()
	require.NoError(m.t, err)
	require.Equal(m.t, wantChange, changed)
	links := map[string]string{}
	root := filepath.Join(m.Dev, "disk")
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type() == fs.ModeSymlink {
			name, _ := filepath.Rel(root, path)
			links[name], err = os.Readlink(path)
		}
		return err
	})
	require.NoError(m.t, err)
	return links
}

func TestLinks(t *testing.T) {
	m := newMachine(t)
	m.plug("pci0000:00/0000:00:05.0/virtio1/block/vda", map[string]string{"serial": "root"})
	m.plug("pci0000:00/0000:00:05.0/virtio1/block/vda/vda1", map[string]string{"partition": "1\n"})
	m.plug("pci0000:00/0000:00:06.0/0000:01:00.0/virtio2/block/vdb", map[string]string{"serial": " a/b  c\xff"})
	m.plug("platform/a0003e00.virtio_mmio/virtio3/block/vdc", map[string]string{"serial": "root"}) // a second one
	m.plug("platform/a0003f00.virtio_mmio/virtio4/block/vdd", map[string]string{"serial": ""})
	m.plug("virtual/block/loop0", map[string]string{"size": "0"})
	want := map[string]string{
		"by-id/virtio-root": "../../vda", "by-path/pci-0000:00:05.0": "../../vda",
		"by-id/virtio-root-part1": "../../vda1", "by-path/pci-0000:00:05.0-part1": "../../vda1",
		"by-id/virtio-a_b_c_": "../../vdb", "by-path/pci-0000:01:00.0": "../../vdb",
	}
	require.Equal(t, want, m.scanned(true))
	require.Equal(t, want, m.scanned(false))

	// The second disk of that serial takes the link over from the first.
	m.unplug("vda")
	m.unplug("vda1")
	m.unplug("vdb")
	require.Equal(t, map[string]string{"by-id/virtio-root": "../../vdc"}, m.scanned(true))
	m.unplug("vdc")
	require.Empty(t, m.scanned(true))
}

func TestConcerns(t *testing.T) {
	generations := 0
	d := &Disks{NewGeneration: func() { generations++ }}
	require.True(t, d.concerns(sys.ParseUevent([]byte("add@/devices/pci0000:00/x\x00ACTION=add\x00DEVPATH=/devices/pci0000:00/x\x00SUBSYSTEM=block\x00"))))
	require.False(t, d.concerns(sys.ParseUevent([]byte("change@/x\x00DEVPATH=/devices/virtual/block/loop0\x00SUBSYSTEM=block\x00"))))
	require.False(t, d.concerns(sys.ParseUevent([]byte("add@/x\x00SUBSYSTEM=cpu\x00"))))
	require.False(t, d.concerns(sys.ParseUevent(nil)))
	require.Zero(t, generations)
	require.False(t, d.concerns(sys.ParseUevent([]byte("change@/x\x00SUBSYSTEM=acpi\x00NEW_VMGENID=1\x00"))))
	require.Equal(t, 1, generations)
}
