package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Mount is one filesystem of the guest itself, in the terms of mount(2).
type Mount struct {
	FSType string
	Target string
	Flags  uintptr
	// Data holds the options in order of preference: where the kernel answers
	// EINVAL to one, the next is tried.
	Data []string
	// Required says that the guest is of no use without it. These are mounted
	// before the daemon serves, the others while it does.
	Required bool
	// Perm is the mode of the mount point if it has to be made.
	Perm os.FileMode
}

const (
	api     = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	scratch = unix.MS_NOSUID | unix.MS_NODEV
)

// Mounts returns the filesystems of the guest in the order to mount them.
//
// /run allows set-user-ID programs: bundles live there, and a container whose
// root filesystem is a plain directory of its bundle runs from it. No one but
// the daemon uses the guest's own /run, so nothing is lost.
// nsdelegate and memory_recursiveprot (Linux 5.7) are what containers expect of
// cgroup2: the first makes a cgroup namespace a boundary, the second passes
// memory.low down to children.
func Mounts() []Mount {
	return []Mount{
		{FSType: "proc", Target: "/proc", Flags: api, Required: true, Perm: 0o555},
		{FSType: "sysfs", Target: "/sys", Flags: api, Required: true, Perm: 0o555},
		{FSType: "devtmpfs", Target: "/dev", Flags: unix.MS_NOSUID, Data: []string{"mode=0755"}, Required: true, Perm: 0o755},
		{FSType: "tmpfs", Target: "/run", Flags: unix.MS_NODEV, Data: []string{"mode=0755"}, Required: true, Perm: 0o755},
		{FSType: "cgroup2", Target: "/sys/fs/cgroup", Flags: api, Data: []string{"nsdelegate,memory_recursiveprot", "nsdelegate", ""}, Perm: 0o555},
		{FSType: "devpts", Target: "/dev/pts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: []string{"newinstance,ptmxmode=0666,mode=0620,gid=5"}, Perm: 0o755},
		{FSType: "tmpfs", Target: "/dev/shm", Flags: scratch, Data: []string{"mode=1777"}, Perm: 0o1777},
		{FSType: "mqueue", Target: "/dev/mqueue", Flags: api, Perm: 0o755},
		{FSType: "tmpfs", Target: "/run/lock", Flags: api, Data: []string{"mode=1777,size=5m"}, Perm: 0o755},
		{FSType: "tmpfs", Target: "/tmp", Flags: scratch, Data: []string{"mode=1777"}, Perm: 0o1777},
		{FSType: "bpf", Target: "/sys/fs/bpf", Flags: api, Data: []string{"mode=0700"}, Perm: 0o700},
	}
}

// String renders the mount as a step name.
func (m Mount) String() string { return "mount " + m.Target }

// Missing returns those of want that are not among the mounts listed in have. A
// target counts as mounted whatever filesystem it carries: someone (the kernel
// with devtmpfs.mount=1, an outer init) has decided already.
func Missing(want []Mount, have []*mountinfo.Info) []Mount {
	mounted := make(map[string]bool, len(have))
	for _, m := range have {
		mounted[m.Mountpoint] = true
	}
	var missing []Mount
	for _, m := range want {
		if !mounted[m.Target] {
			missing = append(missing, m)
		}
	}
	return missing
}

// MountRequired runs one step of r for each filesystem that serving needs and
// that is not mounted yet.
func MountRequired(r *Runner, mounted []*mountinfo.Info) {
	for _, m := range Missing(Mounts(), mounted) {
		if m.Required {
			r.Required(m.String(), m.Mount)
		}
	}
}

// MountRest does the same for the others, without which a guest is poorer but
// works.
func MountRest(r *Runner, mounted []*mountinfo.Info) {
	for _, m := range Missing(Mounts(), mounted) {
		if !m.Required {
			r.Optional(m.String(), m.Mount)
		}
	}
}

// Mount makes the mount point where it is missing and mounts the filesystem.
// EBUSY means that this very filesystem is mounted there already (mount(2)),
// which is fine.
func (m Mount) Mount() error {
	if err := os.Mkdir(m.Target, m.Perm.Perm()); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make mount point: %w", err)
	}
	options := m.Data
	if len(options) == 0 {
		options = []string{""}
	}
	var err error
	for _, data := range options {
		err = unix.Mount(m.FSType, m.Target, m.FSType, m.Flags, data)
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	switch {
	case err == nil, errors.Is(err, unix.EBUSY):
		return nil
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("mount %s on %s: the kernel has no such filesystem: %w", m.FSType, m.Target, err)
	}
	return fmt.Errorf("mount %s on %s (%s): %w", m.FSType, m.Target, strings.Join(options, " | "), err)
}
