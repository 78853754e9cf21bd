package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// bundles holds what all contenders run: the smallest program there is in the
// config that `runc spec` would write.
type bundles struct {
	dir string
}

func (b *bundles) plain() string   { return filepath.Join(b.dir, "plain") }
func (b *bundles) seccomp() string { return filepath.Join(b.dir, "seccomp") }
func (b *bundles) sleeper() string { return filepath.Join(b.dir, "sleeper") }

func (b *bundles) make() error {
	if err := writeBundle(b.plain(), config()); err != nil {
		return err
	}
	sleep := config()
	sleep.Process.Args = []string{"/bin/sleep"}
	sleep.Linux.CgroupsPath = "/bench/sleeper"
	if err := writeBundle(b.sleeper(), sleep); err != nil {
		return err
	}
	filtered := config()
	profile, err := os.ReadFile("nsexec/seccomp/testdata/config-containerd-seccomp.json")
	if err != nil {
		return err
	}
	var from specs.Spec
	if err := json.Unmarshal(profile, &from); err != nil {
		return err
	}
	filtered.Linux.Seccomp = from.Linux.Seccomp
	return writeBundle(b.seccomp(), filtered)
}

func writeBundle(dir string, spec *specs.Spec) error {
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for name, flags := range map[string][]string{"true": nil, "sleep": {"-DSLEEP"}} {
		if err := compile("tiny.c", filepath.Join(root, "bin", name), append(flags, "-static", "-nostdlib")...); err != nil {
			return err
		}
	}
	data, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(dir+"/config.json", data, 0o644)
}

func config() *specs.Spec {
	caps := []string{"CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
	strict := []string{"nosuid", "noexec", "nodev"}
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: "bench",
		Root:     &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"/bin/true"}, Env: []string{"PATH=/bin"}, Cwd: "/", NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"mode=1777", "size=65536k"}, strict...)},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: strict},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"ro"}, strict...)},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append([]string{"relatime", "ro"}, strict...)},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/bench/container",
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}},
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// pureCgroups shows this mount namespace a cgroup2 hierarchy alone.
func pureCgroups() error {
	for {
		err := unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH)
		if errors.Is(err, unix.EINVAL) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount /sys/fs/cgroup: %w (run me in a private mount namespace, as root)", err)
		}
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount cgroup2: %w", err)
	}
	return nil
}
