package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// mountCall is a rootfs mount as mount(2) wants it.
type mountCall struct {
	place              func(target string, f func(on string) error) error // finds the target without links; nil: by its path
	fstype, source     string
	flags, propagation uintptr
	data               []string
	loop               *loopOptions // the source, and devices that are files, are images
	ids                *layerMap    // nil: owners are as they are
	tree               *os.File     // the source of a bind that has been id-mapped
	grow               bool         // the file system, to the size of its device
}

// msFlags are options that mount(2) takes as flags; the others go to the file
// system.
var msFlags = map[string]struct {
	flag  uintptr
	clear bool
}{
	"ro": {unix.MS_RDONLY, false}, "rw": {unix.MS_RDONLY, true}, "nosuid": {unix.MS_NOSUID, false}, "suid": {unix.MS_NOSUID, true},
	"nodev": {unix.MS_NODEV, false}, "dev": {unix.MS_NODEV, true}, "noexec": {unix.MS_NOEXEC, false}, "exec": {unix.MS_NOEXEC, true},
	"sync": {unix.MS_SYNCHRONOUS, false}, "async": {unix.MS_SYNCHRONOUS, true}, "dirsync": {unix.MS_DIRSYNC, false},
	"noatime": {unix.MS_NOATIME, false}, "atime": {unix.MS_NOATIME, true}, "nodiratime": {unix.MS_NODIRATIME, false}, "diratime": {unix.MS_NODIRATIME, true},
	"relatime": {unix.MS_RELATIME, false}, "norelatime": {unix.MS_RELATIME, true}, "strictatime": {unix.MS_STRICTATIME, false}, "nostrictatime": {unix.MS_STRICTATIME, true},
	"lazytime": {unix.MS_LAZYTIME, false}, "nolazytime": {unix.MS_LAZYTIME, true}, "nosymfollow": {unix.MS_NOSYMFOLLOW, false}, "symfollow": {unix.MS_NOSYMFOLLOW, true},
	"bind": {unix.MS_BIND, false}, "rbind": {unix.MS_BIND | unix.MS_REC, false},
}

func parseMount(fstype string, m Mount) (*mountCall, error) {
	c := &mountCall{fstype: fstype, source: m.Source}
	if fstype == "bind" {
		c.flags = unix.MS_BIND
	}
	for _, o := range m.Options {
		if f, ok := msFlags[o]; ok {
			c.flags &^= f.flag
			if !f.clear {
				c.flags |= f.flag
			}
			continue
		}
		if p, ok := propagationOptions[o]; ok {
			c.propagation = uintptr(p)
			continue
		}
		isLoop, err := c.loopOption(o)
		isMap := false
		if err == nil && !isLoop {
			isMap, err = c.mapOption(o)
		}
		switch {
		case err != nil:
			return nil, err
		case o == sys.GrowFSOption:
			c.grow = true
		case isLoop || isMap || ignored(o):
		case o == "remount":
			return nil, sys.Invalidf("option remount: there is nothing yet to be mounted again")
		case o == "" || strings.ContainsAny(o, "\x00\n"):
			return nil, sys.Invalidf("option %q", o)
		default:
			c.data = append(c.data, o)
		}
	}
	if c.loop != nil && c.flags&unix.MS_BIND != 0 {
		return nil, sys.Invalidf("option loop: a bind needs no loop device")
	}
	return c, nil
}

// devices gets ready what the mount is of: waits for devices that may appear
// late, and makes loop devices of images. The mount must be made before release
// is called.
func (c *mountCall) devices(ctx context.Context) (release func(), err error) {
	var loops []*os.File
	release = func() {
		for _, l := range loops {
			l.Close()
		}
	}
	prepare := func(name string) (string, error) {
		if strings.HasPrefix(name, "/dev/") {
			if err := waitForDevice(ctx, name); err != nil {
				return "", err
			}
		}
		if c.loop == nil {
			return name, nil
		}
		l, err := c.loop.attach(name, c.flags&unix.MS_RDONLY != 0)
		if l == nil || err != nil {
			return name, err
		}
		loops = append(loops, l)
		return l.Name(), nil
	}
	if c.flags&unix.MS_BIND != 0 {
		return release, nil
	}
	if c.source, err = prepare(c.source); err != nil {
		release()
		return nil, err
	}
	for i, o := range c.data {
		name, ok := strings.CutPrefix(o, "device=")
		if !ok {
			continue
		}
		if name, err = prepare(name); err != nil {
			release()
			return nil, fmt.Errorf("option %s: %w", o, err)
		}
		c.data[i] = "device=" + name
	}
	return release, nil
}

// mountOn is mount(2), which for binds ignores most flags and for propagation
// wants a call of its own. On failure nothing is mounted.
func (c *mountCall) mountOn(l *nsexec.Launcher, target string) error {
	if c.ids == nil {
		return c.mountWith(target)
	}
	undo, err := c.mapped(l, target)
	if err == nil {
		err = c.mountWith(target)
	}
	if c.tree != nil {
		c.tree.Close()
	}
	undone := undo()
	if err == nil && undone != nil {
		undone = errors.Join(undone, unix.Unmount(target, unix.MNT_DETACH))
	}
	return errors.Join(err, undone)
}

func (c *mountCall) mountWith(target string) error {
	at := func(f func(on string) error) error { // what is mounted, once something is
		if c.place == nil {
			return f(target)
		}
		return c.place(target, f)
	}
	if err := at(c.mountFirst); err != nil {
		if err == unix.ENODEV {
			err = sys.Unsupportedf("the kernel has no file system %q (is its module loaded?): %w", c.fstype, err)
		}
		return c.describe(target, err)
	}
	var err error
	if rest := c.flags &^ (unix.MS_BIND | unix.MS_REC); c.flags&unix.MS_BIND != 0 && rest != 0 {
		err = at(func(on string) error { return unix.Mount("", on, "", c.flags&^unix.MS_REC|unix.MS_REMOUNT, "") })
	}
	if err == nil && c.propagation != 0 {
		err = at(func(on string) error { return unix.Mount("", on, "", c.propagation, "") })
	}
	if err == nil && c.grow {
		err = at(growFS)
	}
	if err != nil {
		return errors.Join(c.describe(target, err), at(func(on string) error { return unix.Unmount(on, unix.MNT_DETACH) }))
	}
	return nil
}

func growFS(on string) error {
	fd, err := unix.Open(on, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return sys.GrowFS(fd)
}

func (c *mountCall) mountFirst(target string) error {
	data := strings.Join(c.data, ",")
	switch {
	case c.tree != nil:
		return unix.MoveMount(int(c.tree.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
	case len(data) < pageSize:
		return unix.Mount(c.source, target, c.fstype, c.flags, data)
	case c.fstype == "overlay":
		return c.mountLongOverlay(target)
	}
	return sys.Invalidf("the options are %d bytes long, the kernel takes less than a page", len(data))
}

func (c *mountCall) describe(target string, err error) error {
	return fmt.Errorf("mount %s %s on %s: %w", c.fstype, c.source, target, err)
}
