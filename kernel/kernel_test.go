// Package kernel_test checks the configuration of the small guest kernel, which
// takes too long to build where tests run: ./config is what `make kernel UPDATE=1`
// made of ./fragment.
package kernel_test

import (
	_ "embed"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vminit/internal/initramfs"
	"vminit/internal/kcheck"
)

var (
	//go:embed fragment
	fragment string
	//go:embed config
	config string
)

// line is an option as a configuration has it.
func line(l string) (option, value string, ok bool) {
	l = strings.TrimSpace(l)
	if option, ok = strings.CutPrefix(l, "# CONFIG_"); ok {
		option, ok = strings.CutSuffix(option, " is not set")
		return option, "n", ok
	}
	if l, ok = strings.CutPrefix(l, "CONFIG_"); !ok {
		return "", "", false
	}
	return strings.Cut(l, "=")
}

// options reads a configuration.
func options(t *testing.T, text string) map[string]string {
	all := map[string]string{}
	for l := range strings.Lines(text) {
		if option, value, ok := line(l); ok {
			if all[option] != "" {
				t.Errorf("CONFIG_%s is there twice", option)
			}
			all[option] = value
		}
	}
	return all
}

// TestFragment: nothing that was asked for is missing in what came out, nothing
// is a module, and every group of options says what for.
func TestFragment(t *testing.T) {
	asked, got := options(t, fragment), options(t, config)
	require.Greater(t, len(asked), 200)
	for option, want := range asked {
		if have := got[option]; want != have && (want != "n" || have != "") {
			t.Errorf("CONFIG_%s is %q, the fragment wants %q: make kernel UPDATE=1", option, have, want)
		}
	}
	for option, value := range got {
		if value == "m" {
			t.Errorf("CONFIG_%s is a module", option)
		}
	}
	for group := range strings.SplitSeq(strings.TrimSpace(fragment), "\n\n") {
		first, _, _ := strings.Cut(group, "\n")
		_, _, isOption := line(first)
		require.True(t, strings.HasPrefix(first, "# ") && !isOption, "no comment above %q", first)
		inGroup := false
		for l := range strings.Lines(group) {
			_, _, isOption := line(l)
			require.True(t, isOption || strings.HasPrefix(l, "#"), "neither an option nor a comment: %q", l)
			inGroup = inGroup || isOption
		}
		require.True(t, inGroup || strings.HasPrefix(fragment, group), "a group of nothing: %q", first)
	}
}

// on makes sure that all options of a list are built in.
func on(t *testing.T, what string, wanted string) {
	got := options(t, config)
	for _, option := range strings.Fields(wanted) {
		require.Equal(t, "y", got[option], "%s needs CONFIG_%s", what, option)
	}
}

// modules are the options that build in what guests with a modular kernel load.
var modules = map[string]string{
	"virtio_pci": "VIRTIO_PCI", "virtio_mmio": "VIRTIO_MMIO", "vmw_vsock_virtio_transport": "VIRTIO_VSOCKETS",
	"virtio_blk": "VIRTIO_BLK", "erofs": "EROFS_FS", "overlay": "OVERLAY_FS", "ext4": "EXT4_FS",
	"virtio_net": "VIRTIO_NET", "virtio_rng": "HW_RANDOM_VIRTIO", "qemu_fw_cfg": "FW_CFG_SYSFS",
	"virtiofs": "VIRTIO_FS", "9p": "9P_FS", "9pnet_virtio": "NET_9P_VIRTIO", "fuse": "FUSE_FS", "loop": "BLK_DEV_LOOP",
	"virtio_console": "VIRTIO_CONSOLE", "vsock_loopback": "VSOCKETS_LOOPBACK",
	"button": "ACPI_BUTTON", "virtio_mem": "VIRTIO_MEM", "ptp_kvm": "PTP_1588_CLOCK_KVM",
	"veth": "VETH", "dummy": "DUMMY", // tests in guests load these, too
}

func TestModulesAreBuiltIn(t *testing.T) {
	for _, module := range slices.Concat(initramfs.DefaultModules(), initramfs.DefaultLateModules(), initramfs.DefaultRestModules(), []string{"veth", "dummy"}) {
		module = strings.TrimSuffix(module, "?")
		require.Contains(t, modules, module, "which option builds it in?")
		on(t, "module "+module, modules[module])
	}
}

// features are the options behind what `vminitctl check` calls required or used,
// by the beginnings of names; the longest one counts. Nothing means that every
// kernel has it.
var features = map[string]string{
	"clone3": "", "close_range": "", "CLOSE_RANGE": "", "MADV_DONTFORK": "", "PR_SET_CHILD_SUBREAPER": "", "sched_setattr": "",
	"pidfd": "", "waitid": "", "setns": "", "no_new_privs": "", "ambient capabilities": "MULTIUSER",
	"mount namespace": "NAMESPACES", "pid namespace": "PID_NS", "network namespace": "NET_NS", "ipc namespace": "IPC_NS SYSVIPC",
	"uts namespace": "UTS_NS", "cgroup namespace": "CGROUPS NAMESPACES", "user namespace": "USER_NS", "time namespace": "TIME_NS",
	"fsopen": "", "open_tree": "", "move_mount": "", "pivot_root": "", "fspick": "", "mount_setattr": "", "MOUNT_ATTR": "", "statx": "", "openat2": "",
	"overlay": "OVERLAY_FS", "erofs": "EROFS_FS EROFS_FS_XATTR EROFS_FS_POSIX_ACL EROFS_FS_ZIP EROFS_FS_ZIP_LZMA", "proc ": "PROC_FS", "TIOCGPTPEER": "UNIX98_PTYS",
	"idmapped": "USER_NS", "cgroup2": "CGROUPS", "cgroup.": "CGROUPS",
	"memory.": "MEMCG SWAP", "cpu.": "CFS_BANDWIDTH FAIR_GROUP_SCHED", "pids.max": "CGROUP_PIDS", "io.max": "BLK_CGROUP BLK_DEV_THROTTLING BLK_CGROUP_IOCOST CGROUP_WRITEBACK",
	"cpuset.cpus": "CPUSETS", "hugetlb controller": "CGROUP_HUGETLB HUGETLBFS", "PSI": "PSI",
	"BPF_": "BPF_SYSCALL CGROUP_BPF BPF_JIT", "seccomp": "SECCOMP SECCOMP_FILTER",
	"session keyrings": "KEYS", "AppArmor": "SECURITY_APPARMOR SECURITYFS",
	"SELinux": "", // its labels are refused, as on Debian's kernel unless it is asked for
	"vsock":   "VSOCKETS VIRTIO_VSOCKETS", "virtiofs": "VIRTIO_FS", "9p": "9P_FS NET_9P_VIRTIO", "ext4": "EXT4_FS EXT4_FS_POSIX_ACL EXT4_FS_SECURITY", "mqueue": "POSIX_MQUEUE",
}

func TestFeatures(t *testing.T) {
	for _, f := range kcheck.Features() {
		if f.Need == kcheck.Optional {
			continue
		}
		longest := ""
		for name := range features {
			if strings.HasPrefix(f.Name, name) && len(name) > len(longest) {
				longest = name
			}
		}
		require.NotEmpty(t, longest, "which options does %q need?", f.Name)
		on(t, f.Name, features[longest])
	}
}

// TestContract: what docs/wire.md and the others promise beyond features and modules.
func TestContract(t *testing.T) {
	for what, wanted := range map[string]string{
		"rootfs mounts of docs/wire.md":       "OVERLAY_FS EROFS_FS EXT4_FS TMPFS VIRTIO_FS 9P_FS SQUASHFS XFS_FS BLK_DEV_LOOP",
		"all controllers of docs/oci-cli.md":  "CPUSETS FAIR_GROUP_SCHED BLK_CGROUP MEMCG CGROUP_HUGETLB CGROUP_PIDS CGROUP_RDMA CGROUP_MISC",
		"volumes of tmpfs":                    "TMPFS_XATTR TMPFS_POSIX_ACL",
		"an initramfs of vminitctl":           "BLK_DEV_INITRD RD_GZIP RD_ZSTD",
		"internal/microvm.UnpackKernel":       "PVH KERNEL_GZIP",
		"QEMU's microvm machine, Firecracker": "VIRTIO_MMIO VIRTIO_MMIO_CMDLINE_DEVICES X86_MPPARSE",
		"disks by partition":                  "EFI_PARTITION MSDOS_PARTITION",
		"hotplug":                             "HOTPLUG_PCI HOTPLUG_PCI_ACPI HOTPLUG_PCI_PCIE HOTPLUG_CPU ACPI_HOTPLUG_CPU MEMORY_HOTPLUG MEMORY_HOTREMOVE ACPI_HOTPLUG_MEMORY VIRTIO_MEM",
		"the clock":                           "PTP_1588_CLOCK_KVM RTC_DRV_CMOS RTC_HCTOSYS VMGENID",
		"power":                               "ACPI_BUTTON VT KEYBOARD_ATKBD SERIO_I8042",
		"credentials and machine id":          "FW_CFG_SYSFS DMI_SYSFS DMIID",
		"consoles":                            "SERIAL_8250_CONSOLE VIRTIO_CONSOLE PRINTK",
		"networks":                            "INET IPV6 PACKET UNIX VIRTIO_NET",
		"linux.memoryPolicy":                  "NUMA",
		"32-bit programs, filtered":           "IA32_EMULATION",
		"docs/security.md":                    "CPU_MITIGATIONS RANDOMIZE_BASE STACKPROTECTOR_STRONG HARDENED_USERCOPY STRICT_KERNEL_RWX BPF_UNPRIV_DEFAULT_OFF",
	} {
		on(t, what, wanted)
	}
	for _, option := range []string{"IP_PNP", "DEVMEM", "DEVPORT", "PROC_KCORE", "KEXEC", "LEGACY_TIOCSTI", "USELIB", "X86_IOPL_IOPERM"} {
		require.NotEqual(t, "y", options(t, config)[option], option)
	}
}
