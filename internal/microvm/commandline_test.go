package microvm

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got, "go test -update rewrites it")
}

func TestCommandLine(t *testing.T) {
	small := Config{
		Name: "c1", Kernel: "/boot/vmlinuz", Initrd: "/cache/initrd", CPUs: 1, MemoryMiB: 512,
		Accel: Accel{Name: TCG},
	}
	own := wiring{
		arch: arches["amd64"], consoleFD: 3, qmpFD: 4, qmpPath: "/run/c1/qmp.sock",
		vsockPath: "/run/c1/device.sock", cid: guestCID,
	}
	large := small
	large.Name, large.Accel.Name, large.CPUs, large.MemoryMiB = "a,b", KVM, 4, 2048
	large.Params, large.Flags = []string{"ip=dhcp"}, []string{"-debug"}
	large.HotplugSlots = 2
	large.MaxCPUs, large.MaxMemoryMiB = 8, 4096
	large.Disks = []Disk{
		{File: os.Stdin, ReadOnly: true, Serial: "root"},
		{Path: "/data/with,comma \"and quote\".ext4"},
		{Path: "/dev/vg/data"},
	}
	large.Shares = []Share{{Dir: "/src,v", Tag: "share0"}, {Dir: "/doc", Tag: "share1", ReadOnly: true}}
	kernel := wiring{
		arch: arches["amd64"], consoleFD: 3, qmpFD: 4, qmpPath: "/run/a,b/qmp.sock",
		vhostFD: 6, cid: 70000, disks: []wiredDisk{{5, "file"}, {-1, "file"}, {-1, "host_device"}},
	}
	mmio := large
	mmio.Machine, mmio.HotplugSlots, mmio.MaxCPUs, mmio.MaxMemoryMiB, mmio.Accel.Name = MachineMMIO, 0, 0, 0, TCG
	untimed := kernel
	untimed.tscKHz = 2100000
	arm := own
	arm.arch = arches["arm64"]
	for _, tt := range []struct {
		name string
		c    Config
		w    wiring
	}{{"small", small, own}, {"large", large, kernel}, {"mmio", mmio, untimed}, {"arm64", small, arm}} {
		t.Run(tt.name, func(t *testing.T) {
			var text strings.Builder
			for _, arg := range commandLine(tt.c, tt.w) {
				if strings.HasPrefix(arg, "-") && text.Len() > 0 {
					text.WriteString("\n")
				} else if text.Len() > 0 {
					text.WriteString(" ")
				}
				text.WriteString(arg)
			}
			golden(t, "commandline-"+tt.name, text.String()+"\n")
		})
	}
}

func TestImageDriver(t *testing.T) {
	images := fstest.MapFS{
		"file": {}, "block": {Mode: fs.ModeDevice | 0o600}, "char": {Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600},
	}
	for name, want := range map[string]string{"file": "file", "block": "host_device", "char": "file", "none": "file"} {
		require.Equal(t, want, imageDriver(images.Stat(name)), name)
	}
}
