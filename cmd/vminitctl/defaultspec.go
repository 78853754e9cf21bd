package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"vminit/internal/sys"
)

// defaultCapabilities are what containerd and docker give a container.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// defaultSpec is the config of a container about which nothing is said, as
// containerd would write it.
func defaultSpec(namespace, id string) *specs.Spec {
	return &specs.Spec{
		Version:  specs.Version,
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: id,
		Process: &specs.Process{
			Cwd: "/",
			Env: []string{defaultPath},
			Capabilities: &specs.LinuxCapabilities{
				Bounding:  slices.Clone(defaultCapabilities),
				Effective: slices.Clone(defaultCapabilities),
				Permitted: slices.Clone(defaultCapabilities),
			},
			Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
			NoNewPrivileges: true,
		},
		Mounts: defaultMounts(),
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join("/", namespace, id),
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
				"/sys/devices/virtual/powercap",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

func defaultMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
	}
}

// processOptions are what a command line says about a process.
type processOptions struct {
	args []string // none: as the config says
	env  []string
	user string // UID[:GID] or a name
	cwd  string
	tty  bool
	size *specs.Box // of the terminal
}

// apply puts what was said over what the config has. users looks names up; it
// may be nil where there is no file to look into.
func (o processOptions) apply(p *specs.Process, users *userFiles) error {
	if len(o.args) > 0 {
		p.Args = o.args
	}
	if len(p.Args) == 0 {
		return sys.Invalidf("no command given: put it after --")
	}
	if o.cwd != "" {
		if !filepath.IsAbs(o.cwd) {
			return sys.Invalidf("--cwd %s: must be an absolute path", o.cwd)
		}
		p.Cwd = filepath.Clean(o.cwd)
	}
	p.Terminal = o.tty
	p.ConsoleSize = nil
	if o.tty {
		p.ConsoleSize = o.size
		p.Env = setDefaultEnv(p.Env, "TERM=xterm")
	}
	if o.user != "" {
		user, home, err := users.lookup(o.user)
		if err != nil {
			return fmt.Errorf("--user %s: %w", o.user, err)
		}
		p.User = user
		if home != "" {
			p.Env = setDefaultEnv(p.Env, "HOME="+home)
		}
	}
	for _, e := range o.env {
		if !strings.Contains(e, "=") {
			value, ok := os.LookupEnv(e) // as docker does: take ours
			if !ok {
				continue
			}
			e += "=" + value
		}
		if strings.HasPrefix(e, "=") || strings.ContainsRune(e, 0) {
			return sys.Invalidf("--env %q: want NAME=VALUE or NAME", e)
		}
		p.Env = setEnv(p.Env, e)
	}
	return nil
}

// setEnv replaces a variable or adds it.
func setEnv(env []string, assignment string) []string {
	name, _, _ := strings.Cut(assignment, "=")
	env = slices.DeleteFunc(slices.Clone(env), func(e string) bool { return strings.HasPrefix(e, name+"=") })
	return append(env, assignment)
}

// setDefaultEnv adds a variable unless it is set.
func setDefaultEnv(env []string, assignment string) []string {
	name, _, _ := strings.Cut(assignment, "=")
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
		return env
	}
	return setEnv(env, assignment)
}

// maxConfig bounds config.json in bytes; the guest takes no larger one.
const maxConfig = 8 << 20

// readBundle reads a bundle's config and where its root file system is, "" if
// the config has none.
func readBundle(dir string) (spec *specs.Spec, root string, err error) {
	name := filepath.Join(dir, "config.json")
	fi, err := os.Stat(name)
	if err != nil {
		return nil, "", fmt.Errorf("bundle: %w", err)
	}
	if fi.Size() > maxConfig {
		return nil, "", sys.Invalidf("bundle: %s has %d bytes, more than the %d allowed", name, fi.Size(), maxConfig)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, "", fmt.Errorf("bundle: %w", err)
	}
	spec = new(specs.Spec)
	if err := json.Unmarshal(b, spec); err != nil {
		return nil, "", fmt.Errorf("bundle: %s: %w", name, err)
	}
	if spec.Process == nil {
		return nil, "", sys.Invalidf("bundle: %s has no process to run", name)
	}
	if spec.Root != nil && spec.Root.Path != "" {
		if root = spec.Root.Path; !filepath.IsAbs(root) {
			root = filepath.Join(dir, root)
		}
	}
	return spec, root, nil
}
