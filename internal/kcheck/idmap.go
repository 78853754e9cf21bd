package kcheck

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

func idmapFeatures() []Feature {
	return []Feature{
		{Name: "idmapped mounts", Since: "5.12", Need: Used, Loses: "the mount options idmap and ridmap are refused", probe: func(e *env) error {
			// The namespace's descriptor is a bad one, and is looked at after the flag.
			n, err := cloneTree(e.scratch, 0)
			if err != nil {
				return err
			}
			defer unix.Close(n)
			return expect(unix.MountSetattr(n, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: 1<<31 - 1}), unix.EBADF)
		}},
		{Name: "idmapped bind mounts", Since: "5.12", Need: Used, Loses: "volumes of user namespaces have foreign owners", probe: func(e *env) error {
			n, where, err := e.bindOfDisk()
			if err != nil {
				return err
			}
			defer unix.Close(n)
			return e.idmap(n, where)
		}},
		{Name: "idmapped tmpfs", Since: "6.3", Need: Optional, Loses: "a tmpfs cannot be idmapped", probe: func(e *env) error {
			n, err := mountTmpfs()
			if err != nil {
				return err
			}
			defer unix.Close(n)
			return e.idmap(n, "tmpfs")
		}},
		{Name: "idmapped erofs", Since: "5.19", Need: Optional, Loses: "image layers cannot be idmapped", probe: func(e *env) error {
			device, err := erofsDevice()
			if err != nil {
				return err
			}
			return e.idmapped(func(p *nsexec.Program) nsexec.Reg { return newMount(p, "erofs", device) }, func(*nsexec.Program, nsexec.Reg) {})
		}},
		{Name: "overlay of idmapped layers", Since: "5.19", Need: Optional, Loses: "root file systems cannot be shifted to a user namespace", probe: overlayOfIdmapped},
	}
}

func (e *env) idmap(tree int, what string) error {
	if e.usernsErr != nil {
		return fmt.Errorf("a user namespace to map with: %w", e.usernsErr)
	}
	err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(e.userns)})
	if errors.Is(err, unix.EINVAL) && what != "tmpfs" {
		return fmt.Errorf("%s: %w", what, err)
	}
	return err
}

// idmapped makes a mount in a child, maps its ids and goes on with it.
func (e *env) idmapped(mount func(*nsexec.Program) nsexec.Reg, then func(*nsexec.Program, nsexec.Reg)) error {
	if e.usernsErr != nil {
		return fmt.Errorf("a user namespace to map with: %w", e.usernsErr)
	}
	return e.child(unix.CLONE_NEWNS, func(p *nsexec.Program) {
		userns := p.Input("userns")
		p.Bind(userns, e.userns)
		private(p)
		p.Step("make a mount")
		tree := mount(p)
		attr := p.Words(unix.MOUNT_ATTR_IDMAP, 0, 0, 0)
		p.Poke(attr.Plus(24), userns.Arg())
		p.Step("map its ids")
		p.Call(unix.SYS_MOUNT_SETATTR, tree.Arg(), p.Str(""), nsexec.Int(unix.AT_EMPTY_PATH), attr, nsexec.Int(32))
		then(p, tree)
	})
}

// overlayOfIdmapped uses whatever file system can be idmapped as a layer.
func overlayOfIdmapped(e *env) error {
	if err := haveFileSystem("overlay"); err != nil {
		return err
	}
	stack := func(p *nsexec.Program, tree nsexec.Reg) {
		attach(p, tree, e.dir("a"), 0)
		overlay(p, "lowerdir", e.dir("a")+":"+e.dir("b"))
	}
	err := e.idmapped(tmpfs, func(*nsexec.Program, nsexec.Reg) {})
	if err == nil {
		return e.idmapped(tmpfs, stack)
	}
	device, err := erofsDevice()
	if err != nil {
		return notHere(nil, "no file system at hand that can be idmapped as a layer")
	}
	return e.idmapped(func(p *nsexec.Program) nsexec.Reg { return newMount(p, "erofs", device) }, stack)
}

// diskFileSystems can be idmapped since 5.12 or soon after.
var diskFileSystems = map[int64]string{unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs"}

// bindOfDisk clones a mount of a file system on a disk.
func (e *env) bindOfDisk() (tree int, where string, err error) {
	for _, dir := range []string{e.scratch, "/", "/var", "/home"} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) != nil || diskFileSystems[int64(st.Type)] == "" {
			continue
		}
		tree, err := cloneTree(dir, 0)
		return tree, diskFileSystems[int64(st.Type)] + " at " + dir, err
	}
	return -1, "", notHere(nil, "no ext4, xfs or btrfs at hand")
}

// erofsDevice finds a device with an erofs that somebody has mounted; another
// read-only mount of it does no harm.
func erofsDevice() (string, error) {
	if err := haveFileSystem("erofs"); err != nil {
		return "", err
	}
	for _, table := range []string{"/proc/self/mountinfo", "/proc/1/mountinfo"} {
		f, err := os.Open(table)
		if err != nil {
			continue
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			_, after, _ := strings.Cut(s.Text(), " - ")
			if w := strings.Fields(after); len(w) >= 2 && w[0] == "erofs" && strings.HasPrefix(w[1], "/dev/") {
				return w[1], nil
			}
		}
	}
	return "", notHere(nil, "no erofs mounted that could be mounted again")
}
