package tasksvc

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

const (
	defaultHome    = "/"     // as runc and crun have it for a user nobody knows
	maxPasswd      = 1 << 20 // bytes (containerd CVE-2026-47262)
	mountedTimeout = 5 * time.Second
)

// maxReads is how many reads of a container's file may be stuck. Each has a
// thread, and a container that is asked often enough could take all there are.
const maxReads = 4

// homeOf looks the home directory of a user up in /etc/passwd of the container
// that a live process is in. The file is the container's, so it is resolved
// inside its root and must be regular and small; a user it does not have lives
// in "/".
func (c *container) homeOf(ctx context.Context, p *nsexec.Process, uid uint32) (string, error) {
	root, err := openRoot(p)
	if err != nil {
		return "", err
	}
	data, err := []byte(nil), error(unix.EXDEV)
	if c.onRootFS(root) {
		data, err = sys.ReadInside(root, "etc/passwd", maxPasswd, unix.RESOLVE_NO_XDEV)
	}
	if err == unix.EXDEV {
		data, err = c.readMounted(ctx, root, "etc/passwd", maxPasswd)
	} else {
		unix.Close(root)
	}
	switch err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
		return defaultHome, nil
	default:
		return "", fmt.Errorf("look up HOME of uid %d in the container's /etc/passwd: %w", uid, err)
	}
	if home := homeInPasswd(data, uid); home != "" {
		return home, nil
	}
	return defaultHome, nil
}

// onRootFS reports whether a directory is on the file system that the container
// was given as its root, and not on one that it has moved to. Neither is asked
// to say so: one that the container has made need not answer.
func (c *container) onRootFS(dir int) bool {
	path := c.spec.Root.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(c.bundle, path)
	}
	var is, given unix.Statx_t
	const ask = unix.STATX_TYPE // the device is always told
	err1 := unix.Statx(dir, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, ask, &is)
	err2 := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, ask, &given)
	return err1 == nil && err2 == nil && is.Dev_major == given.Dev_major && is.Dev_minor == given.Dev_minor
}

// readMounted is sys.ReadInside for a file that is not on the root file system but
// on something mounted, which may be the container's own (FUSE) and never
// answer. It takes root over.
func (c *container) readMounted(ctx context.Context, root int, path string, limit int64) ([]byte, error) {
	type answer struct {
		data []byte
		err  error
	}
	if c.reads.Add(1) > maxReads {
		c.reads.Add(-1)
		unix.Close(root)
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("%d earlier reads of it have not ended", maxReads))
	}
	got := make(chan answer, 1)
	go func() { // ends at the latest when the container, and its file systems, do
		defer c.reads.Add(-1)
		defer unix.Close(root)
		data, err := sys.ReadInside(root, path, limit, 0)
		got <- answer{data, err}
	}()
	ctx, cancel := context.WithTimeout(ctx, mountedTimeout)
	defer cancel()
	select {
	case a := <-got:
		return a.data, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
