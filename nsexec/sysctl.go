package nsexec

import (
	"strings"

	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// sysctlNamespaces: which namespace a process must own for a sysctl to be its
// own (sysctl(5); kernel sources ipc/ipc_sysctl.c, net/sysctl_net.c). What is
// not listed would change the guest (CVE-2022-0811).
var sysctlNamespaces = []struct {
	prefix string // ends in "/" when everything below belongs
	flag   uint64
}{
	{"kernel/msgmax", unix.CLONE_NEWIPC}, {"kernel/msgmnb", unix.CLONE_NEWIPC}, {"kernel/msgmni", unix.CLONE_NEWIPC}, {"kernel/msg_next_id", unix.CLONE_NEWIPC},
	{"kernel/sem", unix.CLONE_NEWIPC}, {"kernel/sem_next_id", unix.CLONE_NEWIPC}, {"kernel/auto_msgmni", unix.CLONE_NEWIPC},
	{"kernel/shmall", unix.CLONE_NEWIPC}, {"kernel/shmmax", unix.CLONE_NEWIPC}, {"kernel/shmmni", unix.CLONE_NEWIPC},
	{"kernel/shm_next_id", unix.CLONE_NEWIPC}, {"kernel/shm_rmid_forced", unix.CLONE_NEWIPC},
	{"fs/mqueue/", unix.CLONE_NEWIPC}, {"net/", unix.CLONE_NEWNET}, {"kernel/hostname", unix.CLONE_NEWUTS}, {"kernel/domainname", unix.CLONE_NEWUTS},
}

// SetSysctl writes a sysctl of a namespace the process has of its own; any
// other is refused. The name may use dots or slashes (sysctl.d(5)): the first
// separator decides.
func (p *Program) SetSysctl(name, value string, own uint64) error {
	file := name
	if dot, slash := strings.IndexByte(name, '.'), strings.IndexByte(name, '/'); dot >= 0 && (slash < 0 || dot < slash) {
		file = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	for part := range strings.SplitSeq(file, "/") {
		if part == "" || part == "." || part == ".." {
			return sys.Invalidf("linux.sysctl: %q is not a name", name)
		}
	}
	for _, s := range sysctlNamespaces {
		if file != s.prefix && !(strings.HasSuffix(s.prefix, "/") && strings.HasPrefix(file, s.prefix)) {
			continue
		}
		if own&s.flag == 0 {
			return sys.Invalidf("linux.sysctl: %s needs a %s namespace of the container's own", name, strings.ToLower(strings.TrimPrefix(decodeFlags(s.flag, cloneFlags), "CLONE_NEW")))
		}
		p.WriteFile("/proc/sys/"+file, value)
		return nil
	}
	return sys.Invalidf("linux.sysctl: %s is not separate per container", name)
}
