package kcheck

import (
	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

const (
	moveMountBeneath = 0x200 // MOVE_MOUNT_BENEATH, linux/mount.h
	lsmtRoot         = ^uint64(0)
	statmountSBBasic = 1
)

func mountFeatures() []Feature {
	return []Feature{
		{Name: "fsopen, fsconfig, fsmount", Since: "5.2", Need: Required, Loses: "no file system can be mounted", probe: func(*env) error {
			return fd(mountTmpfs())
		}},
		{Name: "open_tree OPEN_TREE_CLONE", Since: "5.2", Need: Required, Loses: "no bind mounts", probe: func(e *env) error {
			return fd(cloneTree(e.scratch, 0))
		}},
		{Name: "open_tree AT_RECURSIVE", Since: "5.2", Need: Required, Loses: "no rbind mounts", probe: func(e *env) error {
			return fd(cloneTree(e.scratch, unix.AT_RECURSIVE))
		}},
		{Name: "move_mount by descriptors", Since: "5.2", Need: Required, Loses: "mount destinations could be raced", probe: func(e *env) error {
			return e.child(unix.CLONE_NEWNS, func(p *nsexec.Program) {
				private(p)
				attach(p, tmpfs(p), e.dir("a"), 0)
			})
		}},
		{Name: "pivot_root onto itself", Since: "2.3.41", Need: Required, Loses: "containers could reach the guest's root", probe: func(e *env) error {
			return e.child(unix.CLONE_NEWNS, func(p *nsexec.Program) {
				private(p)
				attach(p, tmpfs(p), e.dir("a"), 0)
				p.Call(unix.SYS_CHDIR, p.Str(e.dir("a")))
				p.Call(unix.SYS_PIVOT_ROOT, p.Str("."), p.Str("."))
				p.Call(unix.SYS_UMOUNT2, p.Str("."), nsexec.Int(unix.MNT_DETACH))
			})
		}},
		{Name: "fspick and reconfigure", Since: "5.2", Need: Used, Loses: "no remounts", probe: func(e *env) error {
			return e.child(unix.CLONE_NEWNS, func(p *nsexec.Program) {
				private(p)
				attach(p, tmpfs(p), e.dir("a"), 0)
				r := p.NewReg("pick")
				p.Call(unix.SYS_FSPICK, nsexec.Int(unix.AT_FDCWD), p.Str(e.dir("a")), nsexec.Int(unix.FSPICK_CLOEXEC)).Store(r)
				p.Call(unix.SYS_FSCONFIG, r.Arg(), nsexec.Int(unix.FSCONFIG_SET_FLAG), p.Str("ro"), nsexec.Nil, nsexec.Int(0))
				p.Call(unix.SYS_FSCONFIG, r.Arg(), nsexec.Int(unix.FSCONFIG_CMD_RECONFIGURE), nsexec.Nil, nsexec.Nil, nsexec.Int(0))
			})
		}},
		{Name: "mount_setattr", Since: "5.12", Need: Required, Loses: "no read-only binds, masks or propagation by descriptor", probe: onTree(0, func(n int) error {
			return unix.MountSetattr(n, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		})},
		{Name: "mount_setattr AT_RECURSIVE", Since: "5.12", Need: Used, Loses: "the options rro, rnosuid, rnodev, ... are refused", probe: onTree(unix.AT_RECURSIVE, func(n int) error {
			return unix.MountSetattr(n, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		})},
		{Name: "MOUNT_ATTR_NOSYMFOLLOW", Since: "5.14", Need: Used, Loses: "the option nosymfollow is refused", probe: onTree(0, func(n int) error {
			return unix.MountSetattr(n, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSYMFOLLOW})
		})},
		{Name: "move_mount MOVE_MOUNT_BENEATH", Since: "6.5", Need: Optional, Loses: "a mount in use cannot be replaced from below", probe: func(e *env) error {
			return e.child(unix.CLONE_NEWNS, func(p *nsexec.Program) {
				private(p)
				attach(p, tmpfs(p), e.dir("a"), 0)
				attach(p, tmpfs(p), e.dir("a"), moveMountBeneath)
			})
		}},
		{Name: "open_tree_attr", Since: "6.15", Need: Optional, Loses: "cloning and changing a mount are two calls", probe: func(e *env) error {
			n, err := call(unix.SYS_OPEN_TREE_ATTR, unix.AT_FDCWD, e.scratch, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC, words(unix.MOUNT_ATTR_RDONLY, 0, 0, 0), 32)
			return fd(n, err)
		}},
		{Name: "listmount", Since: "6.8", Need: Optional, Loses: "mounts are listed by parsing mountinfo", probe: func(*env) error {
			return try(unix.SYS_LISTMOUNT, words(24, lsmtRoot, 0), make([]byte, 80), 10, 0)
		}},
		{Name: "statmount", Since: "6.8", Need: Optional, Loses: "a mount is looked up by parsing mountinfo", probe: func(*env) error {
			id, err := uniqueMountID("/")
			if err != nil {
				id = 1 // the call itself may still be there
			}
			return expect(try(unix.SYS_STATMOUNT, words(24, id, statmountSBBasic), make([]byte, 4096), 4096, 0), unix.ENOENT)
		}},
		{Name: "statx STATX_MNT_ID", Since: "5.8", Need: Required, Loses: "a destination that is the root itself would not be noticed", probe: statxKnows(unix.STATX_MNT_ID)},
		{Name: "statx STATX_MNT_ID_UNIQUE", Since: "6.8", Need: Optional, Loses: "mount ids are used again", probe: statxKnows(unix.STATX_MNT_ID_UNIQUE)},
		{Name: "overlay", Since: "3.18", Need: Used, Loses: "root file systems are read-only or copied", probe: func(*env) error { return haveFileSystem("overlay") }},
		{Name: "overlay in a user namespace", Since: "5.11", Need: Optional, Loses: "containers cannot build images without privilege", probe: func(e *env) error {
			if err := haveFileSystem("overlay"); err != nil {
				return err
			}
			return e.child(unix.CLONE_NEWUSER|unix.CLONE_NEWNS, func(p *nsexec.Program) {
				overlay(p, "lowerdir", e.dir("a")+":"+e.dir("b"))
			})
		}},
		{Name: "overlay lowerdir+", Since: "6.5", Need: Used, Loses: "layers whose paths together exceed a page need mount(2)", probe: func(e *env) error {
			if err := haveFileSystem("overlay"); err != nil {
				return err
			}
			// Older kernels take any option and refuse to mount with it.
			return e.child(0, func(p *nsexec.Program) { overlay(p, "lowerdir+", e.dir("a"), e.dir("b")) })
		}},
		{Name: "erofs", Since: "5.4", Need: Used, Loses: "image layers cannot be mounted", probe: func(*env) error { return haveFileSystem("erofs") }},
		{Name: "proc subset=pid", Since: "5.8", Need: Used, Loses: "the option is refused", probe: func(*env) error { return configures("proc", "subset", "pid") }},
		{Name: "tmpfs noswap", Since: "6.4", Need: Optional, Loses: "secrets in a tmpfs may be swapped out", probe: func(*env) error { return configures("tmpfs", "noswap", "") }},
		{Name: "TIOCGPTPEER", Since: "4.13", Need: Required, Loses: "no terminals", probe: ptyPeer},
	}
}

// mountTmpfs makes a tmpfs that is nowhere in the tree.
func mountTmpfs() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
}

func cloneTree(path string, flags uint) (int, error) {
	return unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|flags)
}

// onTree gives a probe a copy of the scratch directory's mount that is nowhere
// in the tree.
func onTree(flags uint, probe func(int) error) func(*env) error {
	return func(e *env) error {
		n, err := cloneTree(e.scratch, flags)
		if err != nil {
			return err
		}
		defer unix.Close(n)
		return probe(n)
	}
}

// configures asks whether a file system knows an option.
func configures(fstype, key, value string) error {
	if err := haveFileSystem(fstype); err != nil {
		return err
	}
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	if value == "" {
		return unix.FsconfigSetFlag(fs, key)
	}
	return unix.FsconfigSetString(fs, key, value)
}

// private keeps a child's mounts from the rest of the world.
func private(p *nsexec.Program) {
	p.Call(unix.SYS_MOUNT, nsexec.Nil, p.Str("/"), nsexec.Nil, nsexec.Int(unix.MS_REC|unix.MS_PRIVATE), nsexec.Nil)
}

func tmpfs(p *nsexec.Program) nsexec.Reg { return newMount(p, "tmpfs", "tmpfs") }

// newMount makes a mount in the child.
func newMount(p *nsexec.Program, fstype, source string) nsexec.Reg {
	fs, tree := p.NewReg("fs"), p.NewReg("tree")
	p.Call(unix.SYS_FSOPEN, p.Str(fstype), nsexec.Int(unix.FSOPEN_CLOEXEC)).Store(fs)
	p.Call(unix.SYS_FSCONFIG, fs.Arg(), nsexec.Int(unix.FSCONFIG_SET_STRING), p.Str("source"), p.Str(source), nsexec.Int(0))
	if fstype != "tmpfs" {
		p.Call(unix.SYS_FSCONFIG, fs.Arg(), nsexec.Int(unix.FSCONFIG_SET_FLAG), p.Str("ro"), nsexec.Nil, nsexec.Int(0))
	}
	p.Call(unix.SYS_FSCONFIG, fs.Arg(), nsexec.Int(unix.FSCONFIG_CMD_CREATE), nsexec.Nil, nsexec.Nil, nsexec.Int(0))
	p.Call(unix.SYS_FSMOUNT, fs.Arg(), nsexec.Int(unix.FSMOUNT_CLOEXEC), nsexec.Int(0)).Store(tree)
	return tree
}

func attach(p *nsexec.Program, tree nsexec.Reg, to string, flags int) {
	p.Call(unix.SYS_MOVE_MOUNT, tree.Arg(), p.Str(""), nsexec.Int(unix.AT_FDCWD), p.Str(to), nsexec.Int(unix.MOVE_MOUNT_F_EMPTY_PATH|flags))
}

// overlay makes a read-only overlay that is nowhere in the tree.
func overlay(p *nsexec.Program, key string, values ...string) {
	fs := p.NewReg("overlay")
	p.Step("make an overlay")
	p.Call(unix.SYS_FSOPEN, p.Str("overlay"), nsexec.Int(unix.FSOPEN_CLOEXEC)).Store(fs)
	for _, v := range values {
		p.Call(unix.SYS_FSCONFIG, fs.Arg(), nsexec.Int(unix.FSCONFIG_SET_STRING), p.Str(key), p.Str(v), nsexec.Int(0))
	}
	p.Call(unix.SYS_FSCONFIG, fs.Arg(), nsexec.Int(unix.FSCONFIG_CMD_CREATE), nsexec.Nil, nsexec.Nil, nsexec.Int(0))
}

func statxKnows(mask int) func(*env) error {
	return func(*env) error {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, "/", 0, mask, &st); err != nil {
			return err
		}
		if st.Mask&uint32(mask) == 0 {
			return unix.EOPNOTSUPP
		}
		return nil
	}
}

func uniqueMountID(path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID_UNIQUE, &st); err != nil {
		return 0, err
	}
	return st.Mnt_id, nil
}

// ptyPeer opens a terminal's other end without a path.
func ptyPeer(*env) error {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENXIO {
		return notHere(err, "no devpts at /dev/pts")
	}
	if err != nil {
		return err
	}
	defer unix.Close(master)
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	n, err := call(unix.SYS_IOCTL, master, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	return fd(n, err)
}
