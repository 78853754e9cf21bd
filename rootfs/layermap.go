package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// layerMap is the id mapping of a rootfs mount, as hosts with user namespaces
// ask for it: the options uidmap= and gidmap= of a bind or of an overlay, whose
// lower layers then show other owners (overlayfs takes such layers since Linux
// 5.19). The files of the upper layer are as they are.
type layerMap struct {
	uids, gids []specs.LinuxIDMapping
}

const (
	maxLayerMaps     = 340 // user_namespaces(7)
	layerMapDeadline = 30 * time.Second
)

// mapOption takes note of one of the two options.
func (c *mountCall) mapOption(option string) (bool, error) {
	key, value, _ := strings.Cut(option, "=")
	if key != "uidmap" && key != "gidmap" || c.fstype != "bind" && c.fstype != "overlay" {
		return false, nil
	}
	maps, err := parseLayerMap(value)
	if err != nil {
		return true, sys.Invalidf("option %s: %w", option, err)
	}
	if c.ids == nil {
		c.ids = &layerMap{}
	}
	if key == "uidmap" {
		c.ids.uids = maps
	} else {
		c.ids.gids = maps
	}
	return true, nil
}

// parseLayerMap reads CONTAINER:HOST:SIZE, several with commas between them.
func parseLayerMap(value string) (maps []specs.LinuxIDMapping, err error) {
	for one := range strings.SplitSeq(value, ",") {
		var n [3]uint32
		fields := strings.Split(one, ":")
		if len(fields) != len(n) || len(maps) == maxLayerMaps {
			return nil, errors.New("it is CONTAINER:HOST:SIZE, at most 340 of them with commas in between")
		}
		for i, f := range fields {
			id, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("%q is not a number of 32 bits", f)
			}
			n[i] = uint32(id)
		}
		maps = append(maps, specs.LinuxIDMapping{ContainerID: n[0], HostID: n[1], Size: n[2]})
	}
	return maps, nil
}

// mapped makes what the mount is of show its mapped owners: the source of a
// bind becomes a detached tree, the lower layers of an overlay become mounts
// beside the target that undo takes away once the overlay holds them.
func (c *mountCall) mapped(l *nsexec.Launcher, target string) (undo func() error, err error) {
	undo = func() error { return nil }
	if len(c.ids.uids) == 0 || len(c.ids.gids) == 0 {
		return undo, sys.Invalidf("uidmap= and gidmap= belong together")
	}
	ns, err := newUserNamespace(l, c.ids.uids, c.ids.gids, time.Now().Add(layerMapDeadline))
	if err != nil {
		return undo, fmt.Errorf("user namespace for an id mapping: %w", err)
	}
	defer ns.Close()
	if c.fstype == "bind" {
		c.tree, err = mappedTree(c.source, c.flags&unix.MS_REC != 0, ns)
		return undo, err
	}
	var dirs []string
	undo = func() error { return removeMounts(dirs) }
	for i, o := range c.data {
		value, ok := strings.CutPrefix(o, "lowerdir=")
		if !ok {
			continue
		}
		if strings.Contains(value, `\`) { // escapes a colon, or itself
			return undo, sys.Invalidf("option %s: a path with a backslash does not go together with uidmap= and gidmap=", o)
		}
		layers := strings.Split(value, ":")
		for j, layer := range layers {
			if layer == "" { // "::" comes before layers with data only
				continue
			}
			dir, err := os.MkdirTemp(filepath.Dir(target), "mapped-")
			if err != nil {
				return undo, err
			}
			dirs = append(dirs, dir)
			if err := mountMapped(layer, dir, ns); err != nil {
				return undo, err
			}
			layers[j] = dir
		}
		c.data[i] = "lowerdir=" + strings.Join(layers, ":")
	}
	return undo, nil
}

func mountMapped(layer, dir string, ns *os.File) error {
	tree, err := mappedTree(layer, false, ns)
	if err != nil {
		return err
	}
	defer tree.Close()
	if err := unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the id-mapped %s: %w", layer, err)
	}
	return nil
}

// mappedTree is a detached mount of path with other owners.
func mappedTree(path string, recursive bool, ns *os.File) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	set := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
		set |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	tree := os.NewFile(uintptr(fd), path)
	err = unix.MountSetattr(fd, "", set, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
	if err == nil {
		return tree, nil
	}
	if err == unix.EINVAL {
		err = sys.Unsupportedf("its file system (%s) does not support id-mapped mounts on this kernel: %w", fsName(fd), err)
	}
	tree.Close()
	return nil, fmt.Errorf("map the owners of %s: %w", path, err)
}

// removeMounts unmounts and removes directories.
func removeMounts(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			errs = append(errs, fmt.Errorf("unmount %s: %w", dir, err))
		}
		if err := os.Remove(dir); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
