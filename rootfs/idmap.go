package rootfs

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// idmap makes the detached mount in c.tree show other owners
// (mount_setattr(2), MOUNT_ATTR_IDMAP, Linux 5.12). Whoever does it needs
// CAP_SYS_ADMIN over the file system, which a child in a user namespace has not:
// the parent does it.
func (c *Compiler) idmap(e *entry) {
	if e.idmap {
		c.gate("idmap "+e.Destination, func(v *visit) error { return v.idmapTree(e) })
	}
}

func (v *visit) idmapTree(e *entry) error {
	tree, err := v.file(v.tree)
	if err != nil {
		return err
	}
	defer tree.Close()
	ns, err := v.userNamespace(e)
	if err != nil {
		return fmt.Errorf("mount %s: user namespace for its id mapping: %w", e.Destination, err)
	}
	defer ns.Close()
	flags := uint(unix.AT_EMPTY_PATH)
	if e.ridmap {
		flags |= unix.AT_RECURSIVE
	}
	err = unix.MountSetattr(int(tree.Fd()), "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	switch {
	case err == unix.EINVAL:
		what := "its file system (" + fsName(int(tree.Fd())) + ")"
		if e.ridmap {
			what = "one of its file systems"
		}
		return sys.Unsupportedf("mount %s: %s does not support id-mapped mounts on this kernel: %w", e.Destination, what, err)
	case err == unix.EPERM:
		return fmt.Errorf("mount %s: idmap: %w (its source is id-mapped already, or belongs to another user namespace)", e.Destination, err)
	case err != nil:
		return fmt.Errorf("mount %s: idmap: %w", e.Destination, err)
	}
	return nil
}

// userNamespace opens a user namespace with the mappings of a mount: the
// child's own where the spec has no others.
func (v *visit) userNamespace(e *entry) (*os.File, error) {
	own := len(e.UIDMappings) == 0
	if v.owns(unix.CLONE_NEWUSER) && len(v.linux.UIDMappings) > 0 {
		own = own || slices.Equal(e.UIDMappings, v.linux.UIDMappings) && slices.Equal(e.GIDMappings, v.linux.GIDMappings)
	}
	if own {
		return os.Open(fmt.Sprintf("/proc/%d/ns/user", v.child.PID()))
	}
	return newUserNamespace(v.opt.Launcher, e.UIDMappings, e.GIDMappings, v.deadline)
}

// newUserNamespace makes a user namespace that nobody lives in. A child that
// is born into it waits until it has its mappings, then goes.
func newUserNamespace(l *nsexec.Launcher, uids, gids []specs.LinuxIDMapping, deadline time.Time) (_ *os.File, err error) {
	p, err := nsexec.NewProgram()
	if err != nil {
		return nil, err
	}
	p.Gate("id mappings")
	child, err := l.Start(nsexec.Launch{Program: p, Namespaces: unix.CLONE_NEWUSER, Cgroup: -1, PIDNS: -1})
	if err != nil {
		p.Close()
		return nil, err
	}
	defer func() {
		child.Abandon()
		_ = child.Signal(unix.SIGKILL)
		<-child.Done()
		err = errors.Join(err, child.Process.Close())
	}()
	if _, err := child.AwaitGate(deadline); err != nil {
		return nil, err
	}
	for _, m := range []struct {
		file string
		maps []specs.LinuxIDMapping
	}{{"uid_map", uids}, {"gid_map", gids}} {
		if err := writeIDMap(child.PID(), m.file, m.maps); err != nil {
			return nil, err
		}
	}
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", child.PID()))
}

// writeIDMap gives the user namespace of a process a mapping
// (user_namespaces(7)); it can be written once and in one piece.
func writeIDMap(pid int, file string, maps []specs.LinuxIDMapping) error {
	var text strings.Builder
	for _, m := range maps {
		fmt.Fprintf(&text, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, file), []byte(text.String()), 0)
	if errors.Is(err, unix.EINVAL) {
		return sys.Invalidf("write %s (%s): the ranges overlap, are empty or too many: %w", file, strings.ReplaceAll(strings.TrimSpace(text.String()), "\n", ", "), err)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

// fsNames are file systems by what statfs(2) calls them.
var fsNames = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.EROFS_SUPER_MAGIC_V1: "erofs", unix.SQUASHFS_MAGIC: "squashfs", unix.FUSE_SUPER_MAGIC: "fuse or virtiofs",
	unix.V9FS_MAGIC: "9p", unix.NFS_SUPER_MAGIC: "nfs", unix.PROC_SUPER_MAGIC: "proc", unix.SYSFS_MAGIC: "sysfs", unix.RAMFS_MAGIC: "ramfs",
	unix.CGROUP2_SUPER_MAGIC: "cgroup2", unix.DEVPTS_SUPER_MAGIC: "devpts",
}

func fsName(fd int) string {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return err.Error()
	}
	if name, ok := fsNames[int64(st.Type)]; ok {
		return name
	}
	return fmt.Sprintf("type %#x", st.Type)
}
