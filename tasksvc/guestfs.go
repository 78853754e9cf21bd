package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	guestapi "vminit/api/services/guest/v1"
	"vminit/internal/sys"
)

// FIFREEZE and FITHAW of linux/fs.h (Linux 2.6.29).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// frozenFS are the file systems that FreezeFS has frozen. Each is kept open, so
// that it can be thawed whatever becomes of its mount point.
type frozenFS struct {
	mu     sync.Mutex         // guards all below, not held while freezing, which waits for writers
	frozen map[uint64]*frozen // by device number
	closed bool
}

type frozen struct {
	fd    int
	path  string
	timer *time.Timer // thaws; nil without a limit
}

// openFS opens any path on a file system and says which one that is.
func openFS(path string) (fd int, dev uint64, err error) {
	if !filepath.IsAbs(path) {
		return -1, 0, sys.Invalidf("path %q is not absolute", path)
	}
	fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return -1, 0, sys.Mark(sys.ErrNotFound, fmt.Errorf("%s: %w", path, err))
	}
	if err != nil {
		return -1, 0, fmt.Errorf("open %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, 0, fmt.Errorf("stat %s: %w", path, err)
	}
	return fd, st.Dev, nil
}

// FreezeFS implements Guest.FreezeFS.
func (g *Guest) FreezeFS(_ context.Context, r *guestapi.FreezeFSRequest) (*emptypb.Empty, error) {
	var limit time.Duration
	if r.ThawAfter != nil {
		if limit = r.ThawAfter.AsDuration(); !r.ThawAfter.IsValid() || limit < 0 {
			return nil, sys.Invalidf("thaw_after is negative or out of range")
		}
	}
	fd, dev, err := openFS(r.Path)
	if err != nil {
		return nil, err
	}
	f := &frozen{fd: fd, path: r.Path}
	fs := &g.fs
	fs.mu.Lock()
	if fs.closed || fs.frozen[dev] != nil {
		defer fs.mu.Unlock()
		unix.Close(fd)
		if fs.closed {
			return nil, sys.Mark(sys.ErrState, errors.New("the daemon is shutting down"))
		}
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("the file system of %s is frozen already", r.Path))
	}
	fs.frozen[dev] = f // taken before it is true: two calls at once must not both try
	fs.mu.Unlock()
	err = unix.IoctlSetInt(fd, fiFreeze, 0)
	fs.mu.Lock()
	defer fs.mu.Unlock()
	switch {
	case err != nil:
		delete(fs.frozen, dev)
		unix.Close(fd)
		if err == unix.EBUSY {
			err = sys.Mark(sys.ErrState, fmt.Errorf("it is frozen already: %w", err))
		}
		return nil, fmt.Errorf("freeze the file system of %s: %w", r.Path, err)
	case fs.closed: // meanwhile
		_ = fs.thaw(dev)
		return nil, sys.Mark(sys.ErrState, errors.New("the daemon is shutting down"))
	case limit > 0:
		f.timer = time.AfterFunc(limit, func() {
			fs.mu.Lock()
			defer fs.mu.Unlock()
			if fs.frozen[dev] == f {
				g.cfg.Logger.Warn("the host has not thawed a file system in time", "path", f.path, "after", limit, "error", fs.thaw(dev))
			}
		})
	}
	return empty, nil
}

// ThawFS implements Guest.ThawFS. It thaws what another has frozen, too.
func (g *Guest) ThawFS(_ context.Context, r *guestapi.ThawFSRequest) (*emptypb.Empty, error) {
	fd, dev, err := openFS(r.Path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	fs := &g.fs
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.frozen[dev] != nil {
		err = fs.thaw(dev)
	} else {
		err = unix.IoctlSetInt(fd, fiThaw, 0)
	}
	if err == unix.EINVAL {
		err = sys.Mark(sys.ErrState, fmt.Errorf("it is not frozen: %w", err))
	}
	if err != nil {
		return nil, fmt.Errorf("thaw the file system of %s: %w", r.Path, err)
	}
	return empty, nil
}

// thaw thaws and forgets a file system. The caller holds mu.
func (fs *frozenFS) thaw(dev uint64) error {
	f := fs.frozen[dev]
	delete(fs.frozen, dev)
	if f.timer != nil {
		f.timer.Stop()
	}
	defer unix.Close(f.fd)
	return unix.IoctlSetInt(f.fd, fiThaw, 0)
}

// Close ends the kernel logs that are followed, and thaws everything: the sync
// that comes with the end would wait for ever.
func (g *Guest) Close() {
	g.cancel()
	g.fs.mu.Lock()
	defer g.fs.mu.Unlock()
	g.fs.closed = true
	for dev, f := range g.fs.frozen {
		if err := g.fs.thaw(dev); err != nil {
			g.cfg.Logger.Error("thaw", "path", f.path, "error", err)
		}
	}
}

// TrimFS implements Guest.TrimFS.
func (g *Guest) TrimFS(_ context.Context, r *guestapi.TrimFSRequest) (*guestapi.TrimFSResponse, error) {
	fd, _, err := openFS(r.Path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	n, err := sys.Fitrim(fd, r.MinExtentBytes)
	if err == unix.EINVAL {
		err = sys.Invalidf("min_extent_bytes %d: %w", r.MinExtentBytes, err)
	}
	if err != nil {
		return nil, fmt.Errorf("trim the file system of %s: %w", r.Path, err)
	}
	return &guestapi.TrimFSResponse{TrimmedBytes: n}, nil
}
