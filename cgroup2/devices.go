package cgroup2

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// SetDevices lets the cgroup, and all below it, use only the devices that the
// rules allow, and the specification's default devices; a nil list allows just
// those. What is matched by several rules is decided by the last one. It can
// be called again: the new filter takes effect at once, with no moment in
// which anything is allowed that neither filter allows.
//
// A container must not run without it: when the kernel cannot filter devices
// (no CONFIG_CGROUP_BPF) the error is [sys.ErrUnsupported]. Malformed rules are
// [sys.ErrInvalid]. Open descriptors keep working; only open(2) and mknod(2)
// are checked.
func (c *Cgroup) SetDevices(list []specs.LinuxDeviceCgroup) error {
	rules, err := deviceRules(list)
	if err != nil {
		return err
	}
	filter, err := c.tree.filters.get(encode(deviceProgram(rules)))
	if err != nil {
		return c.wrap("load the device filter of", err)
	}
	c.devMu.Lock()
	defer c.devMu.Unlock()
	old := c.filter
	if filter == old { // the kernel refuses the same program twice
		c.tree.filters.put(filter)
		return nil
	}
	err = c.dir.do(func(fd int) error { return swapFilter(fd, filter, old) })
	if err != nil {
		c.tree.filters.put(filter)
		return c.wrap("attach the device filter to", err)
	}
	c.filter = filter
	c.tree.filters.put(old)
	return nil
}

// swapFilter attaches filter to the cgroup fd in place of old, which is nil
// the first time. Kernels before 5.6 have both attached for a moment, which
// denies what either denies.
func swapFilter(fd int, filter, old *devFilter) error {
	if old == nil {
		return bpfUnsupported(attachDeviceProgram(fd, filter.fd, -1))
	}
	err := attachDeviceProgram(fd, filter.fd, old.fd)
	if !errors.Is(err, unix.EINVAL) {
		return err
	}
	if err := attachDeviceProgram(fd, filter.fd, -1); err != nil {
		return err
	}
	return detachDeviceProgram(fd, old.fd)
}

// bpfUnsupported marks the errnos of a kernel that cannot filter devices. Our
// programs are valid, so EINVAL is one of them.
func bpfUnsupported(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return sys.Unsupportedf("%w: does the kernel have CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF?", err)
	}
	return err
}

// devFilter is a loaded program. Containers of the same configuration share it.
type devFilter struct {
	code string
	fd   int // owned by the cache
	refs int // cgroups that use it; guarded by filterCache.mu
}

// maxIdleFilters is how many programs are kept that no container uses.
const maxIdleFilters = 8

// filterCache keeps programs by their code: loading one costs the verifier's
// and the compiler's time, and most containers have the same rules.
type filterCache struct {
	mu      sync.Mutex
	filters map[string]*devFilter // by code; guarded by mu
	idle    []*devFilter          // of these, the ones with no refs, oldest first; guarded by mu
	closed  bool                  // guarded by mu
}

// get returns the filter for code with one more reference.
func (fc *filterCache) get(code []byte) (*devFilter, error) {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	if fc.closed {
		return nil, os.ErrClosed
	}
	f := fc.filters[string(code)]
	if f == nil {
		fd, err := loadDeviceProgram(code)
		if err != nil {
			return nil, bpfUnsupported(fmt.Errorf("load a program of %d instructions: %w", len(code)/insnBytes, err))
		}
		f = &devFilter{code: string(code), fd: fd}
		if fc.filters == nil {
			fc.filters = map[string]*devFilter{}
		}
		fc.filters[f.code] = f
	}
	if f.refs++; f.refs == 1 {
		fc.idle = slices.DeleteFunc(fc.idle, func(g *devFilter) bool { return g == f })
	}
	return f, nil
}

// put gives a reference back. Programs stay attached without it.
func (fc *filterCache) put(f *devFilter) {
	if f == nil {
		return
	}
	fc.mu.Lock()
	defer fc.mu.Unlock()
	if f.refs--; f.refs > 0 {
		return
	}
	fc.idle = append(fc.idle, f)
	if len(fc.idle) > maxIdleFilters || fc.closed {
		oldest := fc.idle[0]
		fc.idle = fc.idle[1:]
		delete(fc.filters, oldest.code)
		unix.Close(oldest.fd)
	}
}

// close closes the programs that no cgroup uses; the others follow as they are
// put back.
func (fc *filterCache) close() {
	fc.mu.Lock()
	defer fc.mu.Unlock()
	fc.closed = true
	for _, f := range fc.idle {
		delete(fc.filters, f.code)
		unix.Close(f.fd)
	}
	fc.idle = nil
}
