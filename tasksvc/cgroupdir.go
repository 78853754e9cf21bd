package tasksvc

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// delegateCgroup gives the container's cgroup to its root user where the config
// says that it is to manage it: with a cgroup namespace and a user namespace of
// its own and a cgroup mount that says "rw", as with runc and crun. The limits
// stay the daemon's.
func (c *container) delegateCgroup(ns namespaces) error {
	const need = unix.CLONE_NEWUSER | unix.CLONE_NEWCGROUP
	if ns.all()&need != need || !slices.ContainsFunc(c.spec.Mounts, writableCgroups) {
		return nil
	}
	uid, err := hostID(0, c.spec.Linux.UIDMappings)
	if err != nil {
		return err
	}
	gid, err := hostID(0, c.spec.Linux.GIDMappings)
	if err != nil {
		return err
	}
	return c.cgroup.Delegate(int(uid), int(gid))
}

func writableCgroups(m specs.Mount) bool {
	return (m.Type == "cgroup" || m.Type == "cgroup2") && slices.Contains(m.Options, "rw") && !slices.Contains(m.Options, "ro")
}

// initsCgroup opens the cgroup that the container's init is in now. A container
// that manages its cgroup moves its processes into ones below and enables
// controllers for them; then the container's own takes no processes any more
// (cgroup-v2.rst, "No Internal Process Constraint"), and execs belong where
// init is. Nothing outside the container's cgroup is opened.
func (c *container) initsCgroup() (*os.File, error) {
	var text []byte
	err := c.init.handle.WhileAlive(func(pid int) (err error) {
		text, err = os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find the cgroup of init: %w", err)
	}
	below, err := cgroupBelow(text, c.cgroup.Path())
	if err != nil {
		return nil, err
	}
	fd, err := unix.Openat2(int(c.cgroup.Dir().Fd()), below, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, fmt.Errorf("open the cgroup of init, %s: %w", below, err)
	}
	return os.NewFile(uintptr(fd), below), nil
}

// openProcs opens the cgroup.procs that an exec is to write itself to.
func (c *container) openProcs() (*os.File, error) {
	dir := c.cgroup.Dir()
	down, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/cgroup.subtree_control")
	if err == nil && len(bytes.TrimSpace(down)) > 0 {
		if dir, err = c.initsCgroup(); err != nil {
			return nil, err
		}
		defer dir.Close()
	}
	procs, err := unix.Openat(int(dir.Fd()), "cgroup.procs", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the container's cgroup.procs: %w", err)
	}
	return os.NewFile(uintptr(procs), "cgroup.procs"), nil
}

// cgroupBelow finds in a /proc/PID/cgroup (cgroups(7)) where the process is
// below a cgroup: "." if it is there itself.
func cgroupBelow(text []byte, dir string) (string, error) {
	for line := range bytes.Lines(text) {
		path, ok := bytes.CutPrefix(bytes.TrimRight(line, "\n"), []byte("0::"))
		if !ok {
			continue
		}
		below, ok := strings.CutPrefix(string(path), dir)
		if ok && (below == "" || below[0] == '/') {
			return cmp.Or(strings.Trim(below, "/"), "."), nil
		}
		return "", sys.Mark(sys.ErrState, fmt.Errorf("init has left the container's cgroup for %.100q", path))
	}
	return "", errors.New("init is in no cgroup")
}
