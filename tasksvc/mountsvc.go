package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	mountapi "vminit/api/services/mount/v1"
	"vminit/internal/sys"
)

// maxMounts bounds the mounts of one call and of the service.
const maxMounts = 1024

// Mounts is the Mount service: file systems mounted in the guest itself, for
// several containers to share. It unmounts nothing but what it has mounted.
type Mounts struct {
	settled, complete <-chan struct{} // of the guest's boot, see Config

	mu   sync.Mutex // guards done, and is held while mounting and unmounting
	done []mounted  // in the order they were mounted
}

// mounted is a mount this service made.
type mounted struct {
	target string
	id     uint64   // of the mount, as statx(2) gives it
	made   []string // directories made for it, outermost first
}

// NewMounts returns the service. settled and complete are Config's: a host may
// mount before it asks for a container, and what it mounts may need a module that
// is loaded late.
func NewMounts(settled, complete <-chan struct{}) *Mounts {
	return &Mounts{settled: settled, complete: complete}
}

// Register adds the service to srv.
func (m *Mounts) Register(srv *ttrpc.Server) { mountapi.RegisterTTRPCMountService(srv, m) }

// MountAll implements Mount.MountAll.
func (m *Mounts) MountAll(ctx context.Context, req *mountapi.MountAllRequest) (*mountapi.MountAllResponse, error) {
	plans := make([]mountPlan, 0, min(len(req.Mounts), maxMounts))
	err := awaitBoot(ctx, m.settled, m.complete, func(known map[string]bool) bool {
		return slices.ContainsFunc(req.Mounts, func(s *mountapi.MountSpec) bool { return lateMount(s.GetType(), s.GetOptions(), known) })
	})
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(req.Mounts)+len(m.done) > maxMounts {
		return nil, sys.Invalidf("%d mounts beside the %d there are; at most %d are allowed", len(req.Mounts), len(m.done), maxMounts)
	}
	for i, spec := range req.Mounts { // all are looked at before the first is made
		p, err := planMount(spec)
		if err != nil {
			return nil, fmt.Errorf("mount %d: %w", i, err)
		}
		plans = append(plans, p)
	}
	before := len(m.done)
	for _, p := range plans {
		err := ctx.Err()
		if err == nil {
			var done mounted
			if done, err = p.mount(); err == nil {
				m.done = append(m.done, done)
				continue
			}
		}
		return nil, errors.Join(fmt.Errorf("%s: %w", p, err), m.undo(before))
	}
	return &mountapi.MountAllResponse{}, nil
}

// undo takes back the mounts from index first on, in reverse, with the
// directories made for them. The caller holds mu.
func (m *Mounts) undo(first int) error {
	var errs []error
	for i := len(m.done) - 1; i >= first; i-- {
		d := m.done[i]
		if err := d.unmount(); err != nil {
			errs = append(errs, fmt.Errorf("take back: %w", err))
			continue
		}
		removeDirs(d.made)
		m.done = slices.Delete(m.done, i, i+1)
	}
	return errors.Join(errs...)
}

// Unmount implements Mount.Unmount.
func (m *Mounts) Unmount(_ context.Context, req *mountapi.UnmountRequest) (*mountapi.UnmountResponse, error) {
	target, err := cleanTarget(req.Target)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := len(m.done) - 1; i >= 0; i-- {
		if m.done[i].target != target {
			continue
		}
		if err := m.done[i].unmount(); err != nil {
			return nil, err
		}
		m.done = slices.Delete(m.done, i, i+1)
		return &mountapi.UnmountResponse{}, nil
	}
	return nil, sys.Mark(sys.ErrNotFound, fmt.Errorf("nothing was mounted on %s by this service", target))
}

// UnmountAll implements Mount.UnmountAll.
func (m *Mounts) UnmountAll(context.Context, *mountapi.UnmountAllRequest) (*mountapi.UnmountAllResponse, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for i := len(m.done) - 1; i >= 0; i-- {
		if err := m.done[i].unmount(); err != nil {
			errs = append(errs, err)
			continue
		}
		m.done = slices.Delete(m.done, i, i+1)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &mountapi.UnmountAllResponse{}, nil
}

// unmount unmounts it if it is still what is mounted there, and is content if
// somebody else has unmounted it.
func (d mounted) unmount() error {
	parent, name, err := openParent(d.target)
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("unmount %s: %w", d.target, err)
	}
	defer unix.Close(parent)
	switch id, err := mountID(parent, name); {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return fmt.Errorf("unmount %s: %w", d.target, err)
	case id != d.id && !mountExists(d.id):
		return nil
	case id != d.id:
		return sys.Mark(sys.ErrState, fmt.Errorf("unmount %s: something else is mounted over it", d.target))
	}
	// The directory that holds the mount point is named by descriptor, so that
	// no symlink can lead elsewhere; the mount point itself is not followed.
	path := fmt.Sprintf("/proc/self/fd/%d/%s", parent, name)
	if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", d.target, err)
	}
	return nil
}

// removeDirs removes directories that were made, if they are still empty.
func removeDirs(made []string) {
	for _, dir := range slices.Backward(made) {
		if os.Remove(dir) != nil {
			return
		}
	}
}
