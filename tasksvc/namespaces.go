package tasksvc

import (
	"fmt"
	"math"
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
	return n, nil
}

// procNamespaces are the names of the namespaces in /proc/PID/ns (namespaces(7)).
var procNamespaces = map[uint64]string{
	unix.CLONE_NEWPID: "pid", unix.CLONE_NEWNET: "net", unix.CLONE_NEWNS: "mnt", unix.CLONE_NEWIPC: "ipc",
	unix.CLONE_NEWUTS: "uts", unix.CLONE_NEWUSER: "user", unix.CLONE_NEWCGROUP: "cgroup", unix.CLONE_NEWTIME: "time",
}

// dropGuests takes out paths that lead to the guest's own namespaces: to join
// one is to have none, and what a container may do in a namespace that is not
// the guest's (sysctls, names) it must not do in that one (CVE-2022-0811).
func (n namespaces) dropGuests() {
	for flag, path := range n.byPath {
		if st, err := os.Stat(path); err == nil && isGuests(flag, st) {
			delete(n.byPath, flag)
		}
	}
}

// isGuests reports whether a namespace's file is that of the daemon's own.
func isGuests(flag uint64, st os.FileInfo) bool {
	own, err := os.Stat("/proc/self/ns/" + procNamespaces[flag])
	return err == nil && os.SameFile(own, st)
}

// mixed reports whether there is a user namespace and namespaces joined by path.
func (n namespaces) mixed() bool { return len(n.byPath) > 0 && n.all()&unix.CLONE_NEWUSER != 0 }

// joinOrder: the user namespace last, because by entering it the process loses
// the rights to those that do not belong to it.
var joinOrder = []uint64{
	unix.CLONE_NEWNET, unix.CLONE_NEWIPC, unix.CLONE_NEWUTS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWTIME, unix.CLONE_NEWPID, unix.CLONE_NEWUSER,
}

// enterNamespaces has the child be in all namespaces but a time namespace with
// offsets, and sets up its stdio. With network, a new network namespace is not
// made but joined.
func (pl *plan) enterNamespaces(ns namespaces, linux *specs.Linux, network bool) {
	p := pl.program
	pl.clone = ns.fresh
	if len(linux.TimeOffsets) > 0 {
		pl.clone &^= unix.CLONE_NEWTIME
	}
	if ns.mixed() {
		pl.joinByPath(ns)
		forked := p.Refork(pl.clone)
		pl.clone = 0
		pl.stdio = p.SetupStdio()
		pl.gate(gateUser, func(child *nsexec.Child, regs *nsexec.Registers) error {
			if err := child.Follow(regs, forked); err != nil {
				return err
			}
			return mapIDs(child.Process, ns, linux)
		})
		return
	}
	pl.stdio = p.SetupStdio()
	if network {
		pl.network = p.JoinFile("network", unix.CLONE_NEWNET)
		pl.clone &^= unix.CLONE_NEWNET
	}
	pl.joinByPath(ns)
	if ns.fresh&unix.CLONE_NEWUSER != 0 {
		pl.gate(gateUser, func(child *nsexec.Child, _ *nsexec.Registers) error { return mapIDs(child.Process, ns, linux) })
	}
}

// joinByPath enters the namespaces that have a path. A pid namespace is entered
// by being born into it: by clone3, or when the child starts over.
func (pl *plan) joinByPath(ns namespaces) {
	for _, flag := range joinOrder {
		if _, ok := ns.byPath[flag]; !ok || flag == unix.CLONE_NEWPID && !ns.mixed() {
			continue
		}
		if pl.files == nil {
			pl.files = map[nsexec.Reg]uint64{}
		}
		pl.files[pl.program.JoinFile(nsName(flag), flag)] = flag
	}
}

// enterTimeNamespace makes the time namespace, which has offsets.
func (pl *plan) enterTimeNamespace(offsets map[string]specs.LinuxTimeOffset, userNS bool) {
	text, err := nsexec.ParseTimeOffsets(offsets)
	if err != nil {
		pl.program.Fail(err)
	}
	var gate func()
	if userNS { // procfs would refuse the child
		gate = func() {
			pl.gate(gateTime, func(child *nsexec.Child, _ *nsexec.Registers) error { return text.Apply(child.Process) })
		}
	}
	pl.program.EnterTimeNamespace(text, gate)
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
func cloneLine(flags uint64) string {
	return "clone3({flags=" + nsexec.CloneFlags(flags|unix.CLONE_PIDFD|unix.CLONE_CLEAR_SIGHAND|unix.CLONE_INTO_CGROUP) + ", exit_signal=SIGCHLD})\n"
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
	if st, err := f.Stat(); err != nil || isGuests(flag, st) { // dropGuests has seen another
		f.Close()
		return nil, sys.Invalidf("join %s namespace: %s has become the guest's own", nsName(flag), path)
	}
	return f, nil
}

// mapIDs gives a new user namespace its mappings (user_namespaces(7)). The
// writer is privileged in the guest.
func mapIDs(child *nsexec.Process, ns namespaces, linux *specs.Linux) error {
	if ns.fresh&unix.CLONE_NEWUSER == 0 {
		return nil
	}
	return child.WhileAlive(func(pid int) error {
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
	})
}

// checkIDMaps checks linux.uidMappings and gidMappings against the namespaces.
// A user namespace joined by path has its mappings already; given again they
// tell whom stdio must belong to.
func checkIDMaps(l *specs.Linux, ns namespaces) error {
	for _, m := range []struct {
		field string
		maps  []specs.LinuxIDMapping
	}{{"linux.uidMappings", l.UIDMappings}, {"linux.gidMappings", l.GIDMappings}} {
		if ns.all()&unix.CLONE_NEWUSER == 0 && len(m.maps) > 0 {
			return sys.Invalidf("%s needs a user namespace", m.field)
		}
		for _, r := range m.maps {
			if r.Size == 0 || uint64(r.ContainerID)+uint64(r.Size) > math.MaxUint32 || uint64(r.HostID)+uint64(r.Size) > math.MaxUint32 {
				return sys.Invalidf("%s: %d ids from %d to %d are not a range", m.field, r.Size, r.ContainerID, r.HostID)
			}
		}
		if ns.fresh&unix.CLONE_NEWUSER == 0 {
			continue
		}
		if _, err := hostID(0, m.maps); err != nil || len(m.maps) == 0 {
			return sys.Invalidf("%s: id 0 must be mapped in a new user namespace", m.field)
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
