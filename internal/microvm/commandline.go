package microvm

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// wiring is how one machine is connected to its owner.
type wiring struct {
	arch      arch
	consoleFD int         // socket that carries the console
	qmpFD     int         // socket that carries the owner's QMP
	qmpPath   string      // QMP socket for other processes
	disks     []wiredDisk // in the order of Config.Disks

	tscKHz uint64 // what the guest cannot measure itself; 0 if it can

	vsockPath string // socket of our own vsock device, or
	vhostFD   int    // an open /dev/vhost-vsock
	cid       uint32
}

// wiredDisk is how QEMU gets at a disk's image.
type wiredDisk struct {
	fd     int    // -1 for one with a path
	driver string // QEMU's for what the image is in
}

// commandLine returns QEMU's arguments for a complete Config.
func commandLine(c Config, w wiring) []string {
	memory := strconv.Itoa(c.MemoryMiB) + "M"
	args := []string{
		"-name", escape(c.Name),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		// The guest is the adversary: QEMU needs no new privileges and no programs.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny",
		"-machine", machine(c, w) + ",memory-backend=mem",
		"-object", "memory-backend-memfd,id=mem,share=on,size=" + memory,
		"-m", memory + hotplug(c.MaxMemoryMiB > c.MemoryMiB, ",slots=%d,maxmem=%dM", memorySlots, c.MaxMemoryMiB),
		"-smp", strconv.Itoa(c.CPUs) + hotplug(c.MaxCPUs > c.CPUs, ",maxcpus=%d", c.MaxCPUs),
	}
	if c.Accel.Name == KVM {
		args = append(args, "-accel", "kvm", "-cpu", "host")
	} else {
		args = append(args, "-accel", "tcg,thread=multi", "-cpu", "max")
	}
	if c.Machine == MachineMMIO {
		args = append(args, "-global", "virtio-mmio.force-legacy=false") // vsock is of virtio 1.0
	}
	args = append(args,
		"-kernel", c.Kernel, "-initrd", c.Initrd,
		"-append", kernelCommandLine(c, w),
		"-chardev", "socket,id=console,fd="+strconv.Itoa(w.consoleFD), "-serial", "chardev:console",
		"-chardev", "socket,id=owner,fd="+strconv.Itoa(w.qmpFD), "-mon", "chardev=owner,mode=control",
		"-chardev", "socket,id=qmp,server=on,wait=off,path="+escape(w.qmpPath), "-mon", "chardev=qmp,mode=control",
	)
	if w.vsockPath != "" {
		args = append(args,
			"-chardev", "socket,id=vsock,path="+escape(w.vsockPath),
			"-device", device(c, "vhost-user-vsock", "")+",chardev=vsock")
	} else {
		args = append(args, "-device",
			fmt.Sprintf("%s,guest-cid=%d,vhostfd=%d", device(c, "vhost-vsock", modern), w.cid, w.vhostFD))
	}
	for i, d := range c.Disks {
		args = append(args, diskArgs(c, i, d, w.disks[i])...)
	}
	for i, s := range c.Shares {
		args = append(args, shareArgs(c, i, s)...)
	}
	for i := range c.HotplugSlots {
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=%s,chassis=%d,slot=%d", slotName(i), i+1, i+1))
	}
	return args
}

// machine is the machine's kind for QEMU.
func machine(c Config, w wiring) string {
	if c.Machine == MachineMMIO {
		return w.arch.mmio
	}
	return w.arch.machine
}

// modern leaves out the PCI devices' registers from before virtio 1.0.
const modern = ",disable-legacy=on"

// device names a virtio device on the machine's bus, with options that it has on
// PCI.
func device(c Config, name, pci string) string {
	if c.Machine == MachineMMIO {
		return name + "-device"
	}
	return name + "-pci" + pci
}

// memorySlots is how many memory modules can be plugged in.
const memorySlots = 16

// hotplug is what lets something be plugged in, if wanted.
func hotplug(wanted bool, format string, args ...any) string {
	if !wanted {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

// kernelCommandLine is what the guest's kernel gets. panic=-1 makes a panic an
// immediate reset, which -no-reboot turns into the end of QEMU. no_timer_check:
// on a busy host an emulated timer can be late for the kernel's check of it,
// which then panics ("IO-APIC + timer doesn't work!"). Two of them
// save 0.3 and 0.1 s of a boot under TCG: no self-tests of ciphers, and with
// one processor no rewriting of every locked instruction. GODEBUG reaches PID 1
// as environment: without huge pages its small heap takes 2 MB less.
func kernelCommandLine(c Config, w wiring) string {
	params := []string{
		"console=" + w.arch.console, "quiet", "loglevel=3", "panic=-1", "net.ifnames=0", "cgroup_no_v1=all",
		"cryptomgr.notests", "noreplace-smp", "no_timer_check", "random.trust_cpu=on", "GODEBUG=disablethp=1",
	}
	if w.tscKHz != 0 {
		params = append(params, "tsc_early_khz="+strconv.FormatUint(w.tscKHz, 10))
	}
	params = append(params, c.Params...)
	flags := c.Flags
	if w.cid != guestCID {
		flags = append([]string{fmt.Sprintf("-vsock-cid=%d", w.cid)}, flags...)
	}
	if len(flags) > 0 {
		params = append(append(params, "--"), flags...)
	}
	return strings.Join(params, " ")
}

// diskArgs puts an image on virtio-blk. It goes through a set of descriptors if
// it was handed over as one: QEMU opens /dev/fdset/N by looking for a
// descriptor of the right access mode in set N.
func diskArgs(c Config, i int, d Disk, w wiredDisk) []string {
	var args []string
	path := d.Path
	if w.fd >= 0 {
		args = append(args, "-add-fd", fmt.Sprintf("fd=%d,set=%d", w.fd, i))
		path = fmt.Sprintf("/dev/fdset/%d", i)
	}
	node := "disk" + strconv.Itoa(i)
	dev := device(c, "virtio-blk", modern) + ",drive=" + node
	if d.Serial != "" {
		dev += ",serial=" + escape(d.Serial)
	}
	return append(args, "-blockdev", blockdev(node, w.driver, path, d.ReadOnly), "-device", dev)
}

// blockdev describes a raw image as JSON, which needs no escaping of commas.
func blockdev(node, driver, path string, readOnly bool) string {
	b, _ := json.Marshal(newBlockNode(node, driver, path, readOnly)) // strings and booleans always encode
	return string(b)
}

// blockNode is the argument of -blockdev and of the QMP command blockdev-add.
type blockNode struct {
	Driver   string    `json:"driver"`
	Node     string    `json:"node-name,omitempty"`
	ReadOnly bool      `json:"read-only"`
	File     blockFile `json:"file"`
}

type blockFile struct {
	Driver   string `json:"driver"`
	Filename string `json:"filename"`
	ReadOnly bool   `json:"read-only"`
	Locking  string `json:"locking"`
}

// newBlockNode locks images that are written to, so that no two machines do.
func newBlockNode(node, driver, path string, readOnly bool) blockNode {
	locking := "auto"
	if readOnly {
		locking = "off"
	}
	return blockNode{"raw", node, readOnly, blockFile{driver, path, readOnly, locking}}
}

func shareArgs(c Config, i int, s Share) []string {
	id := "share" + strconv.Itoa(i)
	dev := "local,id=" + id + ",security_model=none,path=" + escape(s.Dir)
	if s.ReadOnly {
		dev += ",readonly=on"
	}
	return []string{"-fsdev", dev, "-device", device(c, "virtio-9p", modern) + ",fsdev=" + id + ",mount_tag=" + escape(s.Tag)}
}

func slotName(i int) string { return "slot" + strconv.Itoa(i) }

// escape protects a value in QEMU's key=value,... syntax, where a comma is
// written twice.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
