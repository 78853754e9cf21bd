package tasksvc

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	mountapi "vminit/api/services/mount/v1"
	"vminit/internal/sys"
)

// mountPlan is one mount, understood but not yet made.
type mountPlan struct {
	fsType, source, target string
	bind, recursive        bool
	set, clear             uint64   // MOUNT_ATTR_* (mount_setattr(2))
	propagation            uint64   // MS_SHARED and so on, 0 to leave it
	flags                  []string // of the superblock, without value (fsconfig(2))
	data                   []string // "key=value", for the file system
	grow                   bool     // the file system, to the size of its device
}

func (p mountPlan) String() string {
	return fmt.Sprintf("mount %s %s on %s", p.fsType, p.source, p.target)
}

// attr is what a generic option does to a mount.
type attr struct{ set, clear uint64 }

var mountAttrs = map[string]attr{
	"ro":            {unix.MOUNT_ATTR_RDONLY, 0},
	"rw":            {0, unix.MOUNT_ATTR_RDONLY},
	"nosuid":        {unix.MOUNT_ATTR_NOSUID, 0},
	"suid":          {0, unix.MOUNT_ATTR_NOSUID},
	"nodev":         {unix.MOUNT_ATTR_NODEV, 0},
	"dev":           {0, unix.MOUNT_ATTR_NODEV},
	"noexec":        {unix.MOUNT_ATTR_NOEXEC, 0},
	"exec":          {0, unix.MOUNT_ATTR_NOEXEC},
	"nodiratime":    {unix.MOUNT_ATTR_NODIRATIME, 0},
	"diratime":      {0, unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow":   {unix.MOUNT_ATTR_NOSYMFOLLOW, 0},
	"relatime":      {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"atime":         {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"noatime":       {unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME},
	"strictatime":   {unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
}

var mountPropagation = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE,
}

// planMount understands a request. Its errors are ErrInvalid.
func planMount(spec *mountapi.MountSpec) (mountPlan, error) {
	p := mountPlan{fsType: spec.GetType(), source: spec.GetSource()}
	var err error
	if p.target, err = cleanTarget(spec.GetTarget()); err != nil {
		return p, err
	}
	if strings.ContainsRune(p.source, 0) || strings.ContainsRune(p.fsType, 0) {
		return p, sys.Invalidf("mount on %s: NUL in type or source", p.target)
	}
	if p.fsType == "bind" || p.fsType == "rbind" {
		p.bind, p.recursive = true, p.fsType == "rbind"
	}
	for _, o := range spec.GetOptions() {
		if err := p.option(o); err != nil {
			return p, fmt.Errorf("mount on %s: %w", p.target, err)
		}
	}
	switch {
	case p.bind && !path.IsAbs(p.source):
		return p, sys.Invalidf("bind mount on %s: source %q is not an absolute path", p.target, p.source)
	case p.bind && len(p.data) > 0:
		return p, sys.Invalidf("bind mount on %s: unknown option %q", p.target, p.data[0])
	case !p.bind && p.fsType == "":
		return p, sys.Invalidf("mount on %s: no file system type", p.target)
	}
	return p, nil
}

// option takes one option of fstab(5) into the plan.
func (p *mountPlan) option(o string) error {
	if a, ok := mountAttrs[o]; ok {
		p.set = p.set&^(a.clear|a.set) | a.set
		p.clear = (p.clear | a.clear) &^ (a.set &^ unix.MOUNT_ATTR__ATIME)
		if o == "ro" || o == "rw" { // of the superblock too: it decides whether a device is written to
			p.flags = append(slices.DeleteFunc(p.flags, func(f string) bool { return f == "ro" || f == "rw" }), o)
		}
		return nil
	}
	if flag, ok := mountPropagation[o]; ok {
		p.propagation = flag
		if o[0] == 'r' {
			p.propagation |= unix.MS_REC
		}
		return nil
	}
	switch o {
	case "bind", "rbind":
		p.bind, p.recursive = true, o == "rbind"
	case "defaults", "auto", "noauto", "nofail", "_netdev":
		// They speak to mount(8), not to the kernel.
	case sys.GrowFSOption:
		p.grow = true
	case "sync", "dirsync", "lazytime":
		p.flags = append(p.flags, o)
	case "", "remount", "move", "loop":
		return sys.Invalidf("option %q is not supported here", o)
	default:
		if strings.ContainsRune(o, 0) || strings.HasPrefix(o, "loop=") {
			return sys.Invalidf("option %q is not supported here", o)
		}
		p.data = append(p.data, o)
	}
	return nil
}

// cleanTarget checks a mount point: absolute, in its shortest form but for
// slashes at the end, and not the root.
func cleanTarget(target string) (string, error) {
	clean := strings.TrimRight(target, "/")
	if len(clean) >= unix.PathMax {
		return "", sys.Invalidf("target of %d bytes is too long", len(clean))
	}
	if clean == "" || clean[0] != '/' || clean != path.Clean(clean) || strings.ContainsRune(clean, 0) {
		return "", sys.Invalidf("target %q is not an absolute path below / in its shortest form", target)
	}
	return clean, nil
}

// mount makes the mount and the directories that lead to it. If it fails
// nothing is left of either.
func (p mountPlan) mount() (done mounted, err error) {
	tree, isDir, err := p.tree()
	if err != nil {
		return done, err
	}
	defer unix.Close(tree)
	if p.set|p.clear != 0 {
		attr := unix.MountAttr{Attr_set: p.set, Attr_clr: p.clear}
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return done, fmt.Errorf("mount_setattr: %w", err)
		}
	}
	if p.grow {
		if err := sys.GrowFS(tree); err != nil {
			return done, err
		}
	}
	target, made, err := makeTarget(p.target, isDir)
	if err != nil {
		return done, err
	}
	defer unix.Close(target)
	defer func() {
		if err != nil {
			removeDirs(made)
		}
	}()
	const both = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if err := unix.MoveMount(tree, "", target, "", both); err != nil {
		return done, fmt.Errorf("move_mount: %w", err)
	}
	id, err := p.settle(tree)
	if err != nil {
		unix.Unmount("/proc/self/fd/"+strconv.Itoa(tree), unix.MNT_DETACH)
		return done, err
	}
	return mounted{target: p.target, id: id, made: made}, nil
}

// settle does what can only be done to a mount in its place, and returns its id.
func (p mountPlan) settle(tree int) (uint64, error) {
	if p.propagation != 0 {
		flags := uint(unix.AT_EMPTY_PATH)
		if p.propagation&unix.MS_REC != 0 {
			flags |= unix.AT_RECURSIVE
		}
		attr := unix.MountAttr{Propagation: p.propagation &^ unix.MS_REC}
		if err := unix.MountSetattr(tree, "", flags, &attr); err != nil {
			return 0, fmt.Errorf("set propagation: %w", err)
		}
	}
	id, err := mountID(tree, "")
	if err != nil {
		return 0, fmt.Errorf("statx: %w", err)
	}
	return id, nil
}

// tree returns a descriptor of the mount, attached to nothing yet, and whether
// its root is a directory.
func (p mountPlan) tree() (fd int, isDir bool, err error) {
	if !p.bind {
		fd, err = p.newTree()
		return fd, true, err
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if p.recursive {
		flags |= unix.AT_RECURSIVE
	}
	if fd, err = unix.OpenTree(unix.AT_FDCWD, p.source, flags); err != nil {
		return -1, false, fmt.Errorf("open_tree %s: %w", p.source, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, false, fmt.Errorf("stat %s: %w", p.source, err)
	}
	return fd, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// newTree mounts a file system through a context of its own, so that options
// have no common length limit and failures come with the file system's words
// (fsopen(2), Linux 5.2).
func (p mountPlan) newTree() (int, error) {
	ctx, err := unix.Fsopen(p.fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", p.fsType, err)
	}
	defer unix.Close(ctx)
	fail := func(what string, err error) error {
		return fmt.Errorf("%s: %w%s", what, err, contextLog(ctx))
	}
	if p.source != "" {
		if err := unix.FsconfigSetString(ctx, "source", p.source); err != nil {
			return -1, fail("source "+p.source, err)
		}
	}
	for _, f := range p.flags {
		if err := unix.FsconfigSetFlag(ctx, f); err != nil {
			return -1, fail("option "+f, err)
		}
	}
	for _, o := range p.data {
		key, value, hasValue := strings.Cut(o, "=")
		if hasValue {
			err = unix.FsconfigSetString(ctx, key, value)
		} else {
			err = unix.FsconfigSetFlag(ctx, key)
		}
		if err != nil {
			return -1, fail("option "+o, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fail("create", err)
	}
	tree, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fail("fsmount", err)
	}
	return tree, nil
}

// contextLog returns what a file system context has to say about a failure.
func contextLog(ctx int) string {
	var said strings.Builder
	buf := make([]byte, 1024)
	for said.Len() < 8*len(buf) {
		n, err := unix.Read(ctx, buf)
		if err != nil || n <= 0 {
			break
		}
		said.WriteString(" (" + strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")) + ")")
	}
	return said.String()
}
