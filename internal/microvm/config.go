package microvm

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"

	"vminit/internal/sys"
)

// The guest's ports, docs/wire.md section 1.
const (
	RPCPort    = 1025
	StreamPort = 1026
)

// Config says what machine to boot.
type Config struct {
	// Name is how other processes call the machine: letters, digits, -, _ and
	// ., at most 40 of them. Empty means a random name.
	Name string
	// StateRoot is where state directories live; empty means [StateRoot].
	StateRoot string

	// Machine is the kind of machine: empty for QEMU's with PCI, or
	// [MachineMMIO], of which nothing can be plugged in while it runs.
	Machine string
	// QEMU is the emulator; empty means the one in $PATH for this processor.
	QEMU string
	// Kernel is a bzImage or a vmlinux with a PVH entry; Initrd the guest image.
	Kernel, Initrd string
	// Params go to the kernel beside those every guest gets, Flags to vminitd.
	Params, Flags []string

	CPUs      int // 0 means 1
	MemoryMiB int // 0 means 512
	// MaxCPUs and MaxMemoryMiB are how far CPUs and memory can be plugged in
	// while it runs; 0 means not at all.
	MaxCPUs, MaxMemoryMiB int

	Accel Accel // the zero value means whatever ChooseAccel("") says

	// Disks become /dev/vda, /dev/vdb and so on, in this order.
	Disks []Disk
	// Shares are host directories the guest reaches by 9p.
	Shares []Share
	// HotplugSlots is how many more disks can be plugged in while it runs.
	HotplugSlots int

	// Serve has for ports of the host's side of vsock what to do with a
	// connection that the guest makes; it owns the connection. It is called from
	// before the guest runs.
	Serve map[uint32]func(net.Conn) `json:"-"`

	// Logger receives what goes wrong in the background; nil discards it.
	Logger *slog.Logger `json:"-"`
}

// Disk is a raw disk image, or a block device, on virtio-blk. File, if set, is
// handed to QEMU and may have been unlinked; it stays the caller's and must be
// open for writing unless ReadOnly. Otherwise QEMU opens Path.
type Disk struct {
	File     *os.File `json:"-"`
	Path     string
	ReadOnly bool
	Serial   string // at most 20 characters; shown in /sys/block/*/serial
}

// Share is a host directory on virtio-9p, mounted in the guest by its tag.
type Share struct {
	Dir, Tag string
	ReadOnly bool
}

// MachineMMIO is QEMU's "microvm": no PCI, no firmware to speak of, virtio on
// MMIO as Firecracker has it. Only x86 has it.
const MachineMMIO = "microvm"

const (
	maxSerial = 20 // VIRTIO_BLK_ID_BYTES, virtio 1.2 section 5.2.6
	maxTag    = 31 // MAX_TAG_LEN of QEMU's virtio-9p
	maxDisks  = 16
)

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,39}$`)

func checkName(name string) error {
	if !validName.MatchString(name) {
		return sys.Invalidf("VM name %q: want at most 40 letters, digits, -, _ and ., a letter or digit first", name)
	}
	return nil
}

// complete fills in what c leaves open and refuses what cannot work.
func (c Config) complete() (Config, error) {
	if c.Name == "" {
		c.Name = randomName()
	}
	if err := checkName(c.Name); err != nil {
		return c, err
	}
	var err error
	if c.StateRoot == "" {
		if c.StateRoot, err = StateRoot(); err != nil {
			return c, err
		}
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.MemoryMiB == 0 {
		c.MemoryMiB = 512
	}
	if c.Accel.Name == "" {
		if c.Accel, err = ChooseAccel(""); err != nil {
			return c, err
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := c.check(); err != nil {
		return c, err
	}
	c.QEMU, err = findQEMU(c.QEMU)
	return c, err
}

func (c Config) check() error {
	switch {
	case c.Machine != "" && (c.Machine != MachineMMIO || arches[runtime.GOARCH].mmio == ""):
		return sys.Unsupportedf("machine %q: there is only the usual one and, on amd64, %q", c.Machine, MachineMMIO)
	case c.Machine == MachineMMIO && c.HotplugSlots+c.MaxCPUs+c.MaxMemoryMiB > 0:
		return sys.Unsupportedf("machine %s: nothing can be plugged in", MachineMMIO)
	case c.CPUs < 1 || c.CPUs > 255:
		return sys.Invalidf("%d CPUs: want 1 to 255", c.CPUs)
	case c.MaxCPUs != 0 && (c.MaxCPUs < c.CPUs || c.MaxCPUs > 255):
		return sys.Invalidf("at most %d CPUs: want 255 at most and no less than the %d there are", c.MaxCPUs, c.CPUs)
	case c.MaxMemoryMiB != 0 && c.MaxMemoryMiB < c.MemoryMiB:
		return sys.Invalidf("memory of at most %d MiB: less than the %d there are", c.MaxMemoryMiB, c.MemoryMiB)
	case c.MemoryMiB < 64:
		return sys.Invalidf("memory of %d MiB: a guest needs at least 64", c.MemoryMiB)
	case c.Kernel == "" || c.Initrd == "":
		return sys.Invalidf("a kernel and a guest image are needed")
	case len(c.Disks)+c.HotplugSlots > maxDisks:
		return sys.Invalidf("%d disks and %d hotplug slots: at most %d fit", len(c.Disks), c.HotplugSlots, maxDisks)
	}
	for _, d := range c.Disks {
		if len(d.Serial) > maxSerial {
			return sys.Invalidf("disk serial %q: at most %d characters", d.Serial, maxSerial)
		}
		if d.File == nil && d.Path == "" {
			return sys.Invalidf("a disk has neither a file nor a path")
		}
	}
	for _, s := range c.Shares {
		if s.Tag == "" || len(s.Tag) > maxTag {
			return sys.Invalidf("tag %q of the share of %s: want 1 to %d characters", s.Tag, s.Dir, maxTag)
		}
	}
	for _, path := range []string{c.Kernel, c.Initrd} {
		f, err := os.Open(path) // QEMU's own words for this are poor
		if err != nil {
			return err
		}
		f.Close()
	}
	return nil
}

// arch is what differs between the processors that guests run on.
type arch struct {
	qemu    string // the emulator's name
	machine string
	mmio    string // the machine of MachineMMIO, "" if there is none
	console string // the kernel's name of the serial port
}

// q35 rather than QEMU's "microvm" machine, which has no timer but the PIT: without
// KVM a kernel on a loaded host cannot calibrate its clock by that and hangs, so
// it is told how fast the TSC runs. Nothing can be plugged in there either.
var arches = map[string]arch{
	"amd64": {"qemu-system-x86_64", "q35,smbus=off,sata=off,vmport=off", "microvm,rtc=on,pit=on,pic=on", "ttyS0"},
	"arm64": {"qemu-system-aarch64", "virt", "", "ttyAMA0"},
}

func findQEMU(name string) (string, error) {
	a, ok := arches[runtime.GOARCH]
	if !ok {
		return "", sys.Unsupportedf("no microVMs on %s", runtime.GOARCH)
	}
	if name == "" {
		name = a.qemu
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", sys.Mark(sys.ErrNotFound, fmt.Errorf("find QEMU: %w (Debian: apt-get install qemu-system-x86)", err))
	}
	return path, nil
}

// CheckQEMU tells whether there is an emulator for this processor.
func CheckQEMU() error {
	_, err := findQEMU("")
	return err
}
