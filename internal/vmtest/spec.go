package vmtest

import (
	"strings"

	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Spec is a container of default shape that runs args.
func Spec(args ...string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
	strict := []string{"nosuid", "noexec", "nodev"}
	return &specs.Spec{
		Version: "1.2.0", Hostname: "guest-box",
		Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: args, Cwd: "/", NoNewPrivileges: true, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: strict},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"mode=1777", "size=65536k"}, strict...)},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: strict},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"ro"}, strict...)},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append([]string{"relatime", "ro"}, strict...)},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}},
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// RootMounts gives a container the shared root image with a tmpfs for writes.
func RootMounts() []*types.Mount { return RootMountsOf("/dev/vda") }

// RootMountsOf is RootMounts with another disk.
func RootMountsOf(disk string) []*types.Mount {
	return []*types.Mount{
		{Type: "erofs", Source: disk, Options: []string{"ro"}},
		{Type: "tmpfs", Source: "tmpfs"},
		{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
			"X-containerd.mkdir.path={{ mount 1 }}/upper:0755", "X-containerd.mkdir.path={{ mount 1 }}/work:0755",
			"lowerdir={{ mount 0 }}", "upperdir={{ mount 1 }}/upper", "workdir={{ mount 1 }}/work"}},
	}
}

// capabilities are all there are (capabilities(7)), without CAP_.
const capabilities = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE " +
	"NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE " +
	"SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE " +
	"AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"

// Privileged is a process that may do and see whatever the guest's root can: it
// has a root file system of its own, everything else is the guest's. The
// guest's own root, without what is mounted in it, is at /mnt.
func Privileged(args ...string) *specs.Spec {
	s := Spec(args...)
	var caps []string
	for c := range strings.FieldsSeq(capabilities) {
		caps = append(caps, "CAP_"+c)
	}
	s.Hostname = ""
	s.Process.NoNewPrivileges = false
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	s.Process.Rlimits = nil
	s.Mounts = []specs.Mount{
		{Destination: "/proc", Type: "bind", Source: "/proc", Options: []string{"rbind"}},
		{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind"}},
		{Destination: "/dev", Type: "bind", Source: "/dev", Options: []string{"rbind"}},
		{Destination: "/mnt", Type: "bind", Source: "/", Options: []string{"bind"}},
	}
	s.Linux = &specs.Linux{
		Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}},
		Resources:  &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}},
	}
	return s
}
