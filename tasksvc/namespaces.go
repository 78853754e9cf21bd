package tasksvc

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/nsexec"
)

// nsFlags are the namespaces of the spec and their clone flags (namespaces(7)).
var nsFlags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.TimeNamespace:    unix.CLONE_NEWTIME,
}

// namespaces is linux.namespaces, sorted by what is to be done.
type namespaces struct {
	fresh  uint64            // made with the process
	byPath map[uint64]string // joined
}

func parseNamespaces(list []specs.LinuxNamespace) (namespaces, error) {
	n := namespaces{byPath: map[uint64]string{}}
	for _, ns := range list {
		flag, ok := nsFlags[ns.Type]
		if !ok {
			return n, sys.Invalidf("linux.namespaces: unknown type %q", ns.Type)
		}
		if n.all()&flag != 0 {
			return n, sys.Invalidf("linux.namespaces: %s is given twice", ns.Type)
		}
		switch {
		case ns.Path == "":
			n.fresh |= flag
		case !strings.HasPrefix(ns.Path, "/"):
			return n, sys.Invalidf("linux.namespaces: path %q of %s is not absolute", ns.Path, ns.Type)
		default:
			n.byPath[flag] = ns.Path
		}
	}
	if n.fresh&unix.CLONE_NEWNS == 0 {
		return n, sys.Invalidf("linux.namespaces: a mount namespace of its own is required")
	}
	if n.fresh&unix.CLONE_NEWUSER != 0 && len(n.byPath) > 0 {
		return n, sys.Unsupportedf("linux.namespaces: a new user namespace together with namespaces joined by path is not supported yet")
	}
	return n, nil
}

// all are the namespaces that are not the guest's own.
func (n namespaces) all() uint64 {
	all := n.fresh
	for flag := range n.byPath {
		all |= flag
	}
	return all
}

func nsName(flag uint64) string {
	for name, f := range nsFlags {
		if f == flag {
			return string(name)
		}
	}
	return strconv.FormatUint(flag, 16)
}

// cloneLine prints the clone3 that makes a container's first process.
func cloneLine(ns namespaces) string {
	return "clone3({flags=" + nsexec.CloneFlags(ns.fresh|unix.CLONE_PIDFD|unix.CLONE_CLEAR_SIGHAND|unix.CLONE_INTO_CGROUP) + ", exit_signal=SIGCHLD})\n"
}

// openNamespace opens a namespace file and checks that it is of the kind asked
// for (NS_GET_NSTYPE, ioctl_ns(2), Linux 4.11).
func openNamespace(flag uint64, path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("join %s namespace: %w", nsName(flag), err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || uint64(kind) != flag {
		f.Close()
		return nil, sys.Invalidf("join %s namespace: %s is not one", nsName(flag), path)
	}
	return f, nil
}

// writeIDMaps gives the user namespace of a process its mappings
// (user_namespaces(7)). The writer is privileged in the guest.
func writeIDMaps(pid int, linux *specs.Linux) error {
	for _, m := range []struct {
		file string
		maps []specs.LinuxIDMapping
	}{{"uid_map", linux.UIDMappings}, {"gid_map", linux.GIDMappings}} {
		var text strings.Builder
		for _, l := range m.maps {
			fmt.Fprintf(&text, "%d %d %d\n", l.ContainerID, l.HostID, l.Size)
		}
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, m.file), []byte(text.String()), 0); err != nil {
			return fmt.Errorf("write %s of the user namespace: %w", m.file, err)
		}
	}
	return nil
}

// hostID translates an id of the container to the guest's.
func hostID(id uint32, maps []specs.LinuxIDMapping) (uint32, error) {
	if len(maps) == 0 {
		return id, nil
	}
	for _, m := range maps {
		if id >= m.ContainerID && uint64(id)-uint64(m.ContainerID) < uint64(m.Size) {
			return m.HostID + (id - m.ContainerID), nil
		}
	}
	return 0, sys.Invalidf("id %d is not mapped in the user namespace", id)
}
