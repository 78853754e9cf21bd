package tasksvc

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// containerRoot is the file system of a live container as it sees it, mounts
// included. Nothing that is reached by it is outside: paths are resolved by
// openat2(2) (Linux 5.6) below a directory, one component at a time where files
// are made, and what is found is looked at before it is opened. The container
// may change everything meanwhile.
type containerRoot struct {
	fd         int // O_PATH
	uids, gids []specs.LinuxIDMapping
}

// openRoot opens the root of a process (O_PATH). The pid is its own as long as it
// is not reaped, which WhileAlive holds off. A process that is ending has no root
// any more (ENOENT) some time before it can be waited for; that is ErrState.
func openRoot(p *nsexec.Process) (fd int, err error) {
	err = p.WhileAlive(func(pid int) (err error) {
		fd, err = unix.Open("/proc/"+strconv.Itoa(pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	if err == unix.ENOENT {
		err = os.ErrProcessDone
	}
	if err == nil {
		return fd, nil
	}
	if err == os.ErrProcessDone {
		err = sys.Mark(sys.ErrState, err)
	}
	return -1, fmt.Errorf("open the container's root: %w", err)
}

// openContainerRoot opens the root of a container's init.
func openContainerRoot(init *nsexec.Process, uids, gids []specs.LinuxIDMapping) (*containerRoot, error) {
	fd, err := openRoot(init)
	if err != nil {
		return nil, err
	}
	r := &containerRoot{fd: fd, uids: uids, gids: gids}
	// A child whose root is still ours would be the end of all confinement.
	var here, there unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, "/", 0, unix.STATX_MNT_ID, &here)
	if err == nil {
		err = unix.Statx(r.fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &there)
	}
	if err == nil && here.Mnt_id == there.Mnt_id && here.Ino == there.Ino {
		err = errors.New("it is the guest's own")
	}
	if err != nil {
		r.close()
		return nil, fmt.Errorf("verify the container's root: %w", err)
	}
	return r, nil
}

func (r *containerRoot) close() { unix.Close(r.fd) }

// within is the resolution that stays below a directory: a link that leads out
// of it is an error (EXDEV).
const within = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// inRoot is the resolution that has the directory for its root.
const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// openat2 is openat2(2), tried again when a rename somewhere made the kernel
// unsure (EAGAIN).
func openat2(dir int, name string, flags, resolve uint64) (fd int, err error) {
	if name == "" {
		name = "."
	}
	for range 100 {
		fd, err = unix.Openat2(dir, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve})
		if err != unix.EAGAIN && err != unix.EINTR {
			break
		}
	}
	return fd, err
}

// cleanPath returns a path of the container without its slash in front; ".."
// stops at the root, as in the kernel.
func cleanPath(p string) (string, error) {
	if len(p) > maxTarName || strings.IndexByte(p, 0) >= 0 {
		return "", sys.Invalidf("path %.64q... is not one", p)
	}
	return strings.TrimPrefix(path.Clean("/"+p), "/"), nil
}

// mkdirAll makes the directory name below dir, and those above it, and opens it
// (O_PATH).
func mkdirAll(dir int, name string, resolve uint64) (int, error) {
	fd, err := openat2(dir, name, unix.O_PATH|unix.O_DIRECTORY, resolve)
	if err != unix.ENOENT || name == "" || name == "." {
		return fd, err
	}
	parent, err := mkdirAll(dir, strings.TrimPrefix(path.Dir("/"+name), "/"), resolve)
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	if err := refusePseudo(parent); err != nil {
		return -1, err
	}
	if err := unix.Mkdirat(parent, path.Base(name), 0o755); err != nil && err != unix.EEXIST {
		return -1, err
	}
	return openat2(dir, name, unix.O_PATH|unix.O_DIRECTORY, resolve)
}

// procFD is the path by which an O_PATH descriptor can be opened for good.
func procFD(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// notFound says that the path of the request is not there.
func notFound(err error) error {
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return sys.Mark(sys.ErrNotFound, err)
	}
	return err
}

// fromHost returns an id of the guest as the container sees it.
func fromHost(id uint32, maps []specs.LinuxIDMapping) uint32 {
	for _, m := range maps {
		if id >= m.HostID && id-m.HostID < m.Size {
			return m.ContainerID + (id - m.HostID)
		}
	}
	if len(maps) > 0 {
		return 65534 // nobody, as the kernel has it
	}
	return id
}
