package tasksvc

import (
	"fmt"
	"os"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// nsFiles names the files of /proc/PID/ns.
var nsFiles = map[specs.LinuxNamespaceType]string{
	specs.PIDNamespace: "pid", specs.NetworkNamespace: "net", specs.MountNamespace: "mnt", specs.IPCNamespace: "ipc",
	specs.UTSNamespace: "uts", specs.UserNamespace: "user", specs.CgroupNamespace: "cgroup", specs.TimeNamespace: "time",
}

// joinAll gives a config the namespaces of a process by path.
func joinAll(s *specs.Spec, pid uint32, kinds ...specs.LinuxNamespaceType) {
	for _, kind := range kinds {
		ns := specs.LinuxNamespace{Type: kind, Path: fmt.Sprintf("/proc/%d/ns/%s", pid, nsFiles[kind])}
		found := false
		for i := range s.Linux.Namespaces {
			if s.Linux.Namespaces[i].Type == kind {
				s.Linux.Namespaces[i], found = ns, true
			}
		}
		if !found {
			addNamespaces(s, ns)
		}
	}
}

// TestNamespaces has containers join the namespaces of another one by path: with
// none, a new and a joined user namespace; and execs join theirs.
func TestNamespaces(t *testing.T) {
	h := newHost(t)
	holder := func(id string, edit func(*specs.Spec)) uint32 {
		s := probeSpec()
		s.Process.Args = []string{"/bin/sleep", "1000"}
		addNamespaces(s, specs.LinuxNamespace{Type: specs.TimeNamespace})
		edit(s)
		h.running(id, s)
		st, err := h.State(h.ctx(), &taskv3.StateRequest{ID: id})
		require.NoError(t, err)
		return st.Pid
	}
	plain := holder("plain", func(*specs.Spec) {})
	inUser := holder("inuser", fullUserNS)
	const own, theirs, guests = "its own", "the holder's", "the guest's"
	all := []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace, specs.TimeNamespace}
	for name, x := range map[string]struct {
		holder uint32
		edit   func(*specs.Spec)
		want   map[specs.LinuxNamespaceType]string // the rest is the container's own
	}{
		"none": {plain, func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}} },
			map[specs.LinuxNamespaceType]string{specs.PIDNamespace: guests, specs.NetworkNamespace: guests, specs.IPCNamespace: guests, specs.UTSNamespace: guests, specs.UserNamespace: guests, specs.CgroupNamespace: guests, specs.TimeNamespace: guests}},
		"fresh": {plain, func(s *specs.Spec) { fullUserNS(s); addNamespaces(s, specs.LinuxNamespace{Type: specs.TimeNamespace}) }, nil},
		"joined": {plain, func(s *specs.Spec) { joinAll(s, plain, append(all, specs.PIDNamespace)...) },
			map[specs.LinuxNamespaceType]string{specs.PIDNamespace: theirs, specs.NetworkNamespace: theirs, specs.IPCNamespace: theirs, specs.UTSNamespace: theirs, specs.UserNamespace: guests, specs.CgroupNamespace: theirs, specs.TimeNamespace: theirs}},
		"new user": {plain, func(s *specs.Spec) { fullUserNS(s); joinAll(s, plain, all...) },
			map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: theirs, specs.IPCNamespace: theirs, specs.UTSNamespace: theirs, specs.CgroupNamespace: theirs, specs.TimeNamespace: theirs}},
		"new user, joined pid": {plain, func(s *specs.Spec) {
			fullUserNS(s)
			joinAll(s, plain, specs.PIDNamespace)
			// A procfs of that namespace is not the user namespace's to mount.
			s.Mounts[0] = specs.Mount{Destination: "/proc", Source: "/proc", Type: "bind", Options: []string{"rbind"}}
			s.Linux.ReadonlyPaths, s.Linux.MaskedPaths = nil, nil
		}, map[specs.LinuxNamespaceType]string{specs.PIDNamespace: theirs, specs.TimeNamespace: guests}},
		"joined user": {inUser, func(s *specs.Spec) {
			fullUserNS(s) // for the mappings
			joinAll(s, inUser, specs.UserNamespace, specs.NetworkNamespace, specs.UTSNamespace)
		}, map[specs.LinuxNamespaceType]string{specs.UserNamespace: theirs, specs.NetworkNamespace: theirs, specs.UTSNamespace: theirs, specs.TimeNamespace: guests}},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			s := probeSpec()
			x.edit(s)
			id := fmt.Sprintf("c%d", len(name))
			check := func(got map[string]uint64) {
				t.Helper()
				for kind, file := range nsFiles {
					var st unix.Stat_t
					require.NoError(t, unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", x.holder, file), &st))
					is := own
					switch got[file] {
					case ownNamespace(t, file):
						is = guests
					case st.Ino:
						is = theirs
					}
					want := x.want[kind]
					if want == "" {
						want = own
					}
					require.Equal(t, want, is, "%s namespace", kind)
				}
			}
			r := h.report(id, s)
			check(r.Namespaces)
			require.Empty(t, r.Errors["namespaces"])
			require.Equal(t, 0, r.UIDs.Real)

			proc := *s.Process
			s.Process.Args = []string{"/bin/sleep", "1000"}
			h.running(id+"run", s)
			check(h.execReport(id+"run", "exec", &proc).Namespaces)
		})
	}
	h.t = t
}

// TestRefusedNamespaces: a kind that is none, twice the same, a path that leads
// elsewhere, settings for a namespace that is not there.
func TestRefusedNamespaces(t *testing.T) {
	h := newHost(t)
	self := fmt.Sprintf("/proc/%d/ns/", os.Getpid())
	for name, x := range map[string]struct {
		edit func(*specs.Spec)
		text string
	}{
		"kind":      {func(s *specs.Spec) { addNamespaces(s, specs.LinuxNamespace{Type: "moon"}) }, `unknown type "moon"`},
		"twice":     {func(s *specs.Spec) { addNamespaces(s, specs.LinuxNamespace{Type: specs.PIDNamespace}) }, "pid is given twice"},
		"relative":  {func(s *specs.Spec) { s.Linux.Namespaces[4].Path = "ns/net" }, "is not absolute"},
		"not there": {func(s *specs.Spec) { s.Linux.Namespaces[4].Path = "/nosuch" }, "no such file"},
		"other":     {func(s *specs.Spec) { s.Linux.Namespaces[4].Path = self + "ipc" }, "is not one"},
		"no file":   {func(s *specs.Spec) { s.Linux.Namespaces[4].Path = "/etc/passwd" }, "is not one"},
		"mount":     {func(s *specs.Spec) { s.Linux.Namespaces[1].Path = self + "mnt" }, "a mount namespace of its own is required"},
		"hostname":  {func(s *specs.Spec) { s.Hostname = "x"; s.Linux.Namespaces = s.Linux.Namespaces[:2] }, "UTS namespace"},
		"domain":    {func(s *specs.Spec) { s.Domainname = "x"; s.Linux.Namespaces = s.Linux.Namespaces[:2] }, "UTS namespace"},
		"no maps":   {func(s *specs.Spec) { addNamespaces(s, specs.LinuxNamespace{Type: specs.UserNamespace}) }, "id 0 must be mapped"},
		"no root": {func(s *specs.Spec) {
			fullUserNS(s)
			s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 1, HostID: 1, Size: 10}}
		}, "linux.gidMappings: id 0 must be mapped"},
		"no user": {func(s *specs.Spec) {
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1, Size: 10}}
		}, "linux.uidMappings needs a user namespace"},
		"wraps": {func(s *specs.Spec) {
			fullUserNS(s)
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1, Size: 1<<32 - 1}}
		}, "are not a range"},
		"empty": {func(s *specs.Spec) {
			fullUserNS(s)
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 1, Size: 0}}
		}, "are not a range"},
		"no time": {func(s *specs.Spec) {
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}
		}, "linux.timeOffsets needs a new time namespace"},
		"clock": {func(s *specs.Spec) {
			addNamespaces(s, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"realtime": {Secs: 1}}
		}, `unknown clock "realtime"`},
		"nanosecs": {func(s *specs.Spec) {
			addNamespaces(s, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Nanosecs: 1e9}}
		}, "more than a second"},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			s := probeSpec()
			x.edit(s)
			err := h.refused(s, x.text)
			if name != "not there" {
				require.ErrorIs(t, err, sys.ErrInvalid)
			}
		})
	}
	h.t = t
}
