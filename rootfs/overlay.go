package rootfs

import (
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// mountLongOverlay mounts an overlay whose options do not fit into the page
// that mount(2) copies. Most of them are paths with the same beginning, which
// is left out: the kernel resolves relative ones from the working directory.
// Where that is still too long, fsconfig(2) takes one layer at a time
// (lowerdir+, Linux 6.7).
func (c *mountCall) mountLongOverlay(target string) error {
	dir, data := shorten(c.data)
	if joined := strings.Join(data, ","); len(joined) < pageSize {
		return inDirectory(dir, func() error { return unix.Mount(c.source, target, c.fstype, c.flags, joined) })
	}
	err := c.mountLayers(target)
	if err == unix.EINVAL {
		return sys.Invalidf("the options are %d bytes long, the kernel takes less than a page or, since Linux 6.7, layers of up to %d bytes: %w",
			len(strings.Join(c.data, ",")), maxFsconfigValue, err)
	}
	return err
}

var overlayPaths = []string{"lowerdir", "upperdir", "workdir"}

// shorten makes the paths of an overlay relative to the directory that all of
// them share.
func shorten(options []string) (dir string, short []string) {
	var paths []string
	for _, o := range options {
		if key, value, _ := strings.Cut(o, "="); slices.Contains(overlayPaths, key) {
			paths = append(paths, strings.Split(value, ":")...)
		}
	}
	dir = commonParent(paths)
	for _, o := range options {
		key, value, _ := strings.Cut(o, "=")
		if slices.Contains(overlayPaths, key) {
			layers := strings.Split(value, ":")
			for i, l := range layers {
				if l != "" { // "::" comes before layers with data only
					layers[i] = strings.TrimPrefix(strings.TrimPrefix(l, dir), "/")
				}
			}
			o = key + "=" + strings.Join(layers, ":")
		}
		short = append(short, o)
	}
	return dir, short
}

// commonParent is the deepest directory that is above all absolute paths.
// Anything else among them (an escaped colon cuts one) leaves "/".
func commonParent(paths []string) string {
	dir := ""
	for _, p := range paths {
		switch {
		case p == "":
			continue
		case !strings.HasPrefix(p, "/") || strings.Contains(p, `\`) || filepath.Clean(p) != p:
			return "/"
		case dir == "":
			dir = filepath.Dir(p)
		}
		for !isBelow(filepath.Dir(p), dir) {
			dir = filepath.Dir(dir)
		}
	}
	if dir == "" {
		return "/"
	}
	return dir
}

// inDirectory runs f with a working directory that only f has: on a thread that
// no longer shares it with the others, and that ends afterwards.
func inDirectory(dir string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(dir)
		}
		if err == nil {
			err = f()
			_ = unix.Chdir("/") // should this be the main thread, which stays
		}
		done <- err
	}()
	return <-done
}

// mountLayers is a mount by fsopen(2), one layer per call. EINVAL as it stands
// means that the kernel does not take layers so.
func (c *mountCall) mountLayers(target string) error {
	fs, err := unix.Fsopen(c.fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	if err := c.configure(fs); err != nil {
		return err
	}
	attrs := 0
	for _, a := range []struct{ attr, ms int }{
		{unix.MOUNT_ATTR_RDONLY, unix.MS_RDONLY}, {unix.MOUNT_ATTR_NOSUID, unix.MS_NOSUID}, {unix.MOUNT_ATTR_NODEV, unix.MS_NODEV}, {unix.MOUNT_ATTR_NOEXEC, unix.MS_NOEXEC},
		{unix.MOUNT_ATTR_NOATIME, unix.MS_NOATIME}, {unix.MOUNT_ATTR_NODIRATIME, unix.MS_NODIRATIME}, {unix.MOUNT_ATTR_STRICTATIME, unix.MS_STRICTATIME},
	} {
		if int(c.flags)&a.ms != 0 {
			attrs |= a.attr
		}
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	return unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
}

func (c *mountCall) configure(fs int) error {
	set := [][2]string{{"source", c.source}}
	for _, o := range c.data {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case key != "lowerdir":
			set = append(set, [2]string{key, value})
		case strings.Contains(value, "::") || strings.Contains(value, `\`):
			return unix.EINVAL
		default:
			for layer := range strings.SplitSeq(value, ":") {
				set = append(set, [2]string{"lowerdir+", layer})
			}
		}
	}
	for _, kv := range set {
		var err error
		if kv[1] == "" {
			err = unix.FsconfigSetFlag(fs, kv[0])
		} else {
			err = unix.FsconfigSetString(fs, kv[0], kv[1])
		}
		if err != nil {
			return err
		}
	}
	if c.flags&unix.MS_RDONLY != 0 {
		if err := unix.FsconfigSetFlag(fs, "ro"); err != nil {
			return err
		}
	}
	return unix.FsconfigCreate(fs)
}
