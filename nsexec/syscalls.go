package nsexec

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// syscallSig is a syscall's name and, one letter each, how its arguments print:
//
//	d number   f fd   o octal   s string   v string vector   p address   g signal
//	h open_how   a mount_attr   l rlimit   w two words   c clone_args   q sched_attr
//
// and the flag tables below.
type syscallSig struct {
	nr   uint32
	name string
	args string
}

var signatures = [...]syscallSig{
	{unix.SYS_CAPSET, "capset", "pp"},
	{unix.SYS_CHDIR, "chdir", "s"},
	{unix.SYS_CHROOT, "chroot", "s"},
	{unix.SYS_CLONE, "clone", "Npppp"},
	{unix.SYS_CLONE3, "clone3", "cd"},
	{unix.SYS_CLOSE, "close", "f"},
	{unix.SYS_CLOSE_RANGE, "close_range", "ddd"},
	{unix.SYS_DUP3, "dup3", "ffO"},
	{unix.SYS_EXECVE, "execve", "svv"},
	{unix.SYS_EXIT_GROUP, "exit_group", "d"},
	{unix.SYS_FCHDIR, "fchdir", "f"},
	{unix.SYS_FCHMOD, "fchmod", "fo"},
	{unix.SYS_FACCESSAT, "faccessat", "fso"},
	{unix.SYS_FCHMODAT, "fchmodat", "fso"},
	{unix.SYS_FCHOWN, "fchown", "fdd"},
	{unix.SYS_FCHOWNAT, "fchownat", "fsddA"},
	{unix.SYS_FCNTL, "fcntl", "fdd"},
	{unix.SYS_FSCONFIG, "fsconfig", "fCssd"},
	{unix.SYS_FSMOUNT, "fsmount", "fdM"},
	{unix.SYS_FSOPEN, "fsopen", "sd"},
	{unix.SYS_FSPICK, "fspick", "fsd"},
	{unix.SYS_FSTATFS, "fstatfs", "fp"},
	{unix.SYS_GETCWD, "getcwd", "pd"},
	{unix.SYS_IOCTL, "ioctl", "fIp"},
	{unix.SYS_IOPRIO_SET, "ioprio_set", "ddd"},
	{unix.SYS_KEYCTL, "keyctl", "ds"},
	{unix.SYS_MKDIRAT, "mkdirat", "fso"},
	{unix.SYS_MKNODAT, "mknodat", "fsod"},
	{unix.SYS_MOUNT, "mount", "sssFs"},
	{unix.SYS_MOUNT_SETATTR, "mount_setattr", "fsAad"},
	{unix.SYS_MOVE_MOUNT, "move_mount", "fsfsV"},
	{unix.SYS_OPENAT, "openat", "fsOo"},
	{unix.SYS_OPENAT2, "openat2", "fshd"},
	{unix.SYS_OPEN_TREE, "open_tree", "fsT"},
	{unix.SYS_PERSONALITY, "personality", "d"},
	{unix.SYS_PPOLL, "ppoll", "pdppd"},
	{unix.SYS_PIVOT_ROOT, "pivot_root", "ss"},
	{unix.SYS_PRCTL, "prctl", "Pdddd"},
	{unix.SYS_PRLIMIT64, "prlimit64", "dRlp"},
	{unix.SYS_READ, "read", "fpd"},
	{unix.SYS_RT_SIGPROCMASK, "rt_sigprocmask", "dwpd"},
	{unix.SYS_SCHED_SETAFFINITY, "sched_setaffinity", "ddp"},
	{unix.SYS_SCHED_SETATTR, "sched_setattr", "dqd"},
	{unix.SYS_SECCOMP, "seccomp", "ddp"},
	{unix.SYS_SETDOMAINNAME, "setdomainname", "sd"},
	{unix.SYS_SETGROUPS, "setgroups", "dp"},
	{unix.SYS_SETHOSTNAME, "sethostname", "sd"},
	{unix.SYS_SETNS, "setns", "fN"},
	{unix.SYS_SETPRIORITY, "setpriority", "ddd"},
	{unix.SYS_SETRESGID, "setresgid", "ddd"},
	{unix.SYS_SETRESUID, "setresuid", "ddd"},
	{unix.SYS_SETSID, "setsid", ""},
	{unix.SYS_SET_MEMPOLICY, "set_mempolicy", "dpd"},
	{unix.SYS_SOCKET, "socket", "ddd"},
	{unix.SYS_STATX, "statx", "fsAdp"},
	{unix.SYS_SYMLINKAT, "symlinkat", "sfs"},
	{unix.SYS_UMASK, "umask", "o"},
	{unix.SYS_UMOUNT2, "umount2", "sU"},
	{unix.SYS_UNSHARE, "unshare", "N"},
	{unix.SYS_WRITE, "write", "fpd"},
}

func signature(nr uint32) syscallSig {
	for _, s := range signatures {
		if s.nr == nr {
			return s
		}
	}
	return syscallSig{nr, fmt.Sprintf("syscall_%d", nr), "dddddd"}
}

func syscallName(nr uint32) string { return signature(nr).name }

type flagName struct {
	bits uint64
	name string
}

// flagTables are sets of bits, valueTables are plain numbers.
var (
	flagTables = map[byte][]flagName{
		'A': atFlags, 'F': mountFlags, 'M': mountAttrs, 'N': cloneFlags, 'O': openFlags,
		'T': openTreeFlags, 'U': umountFlags, 'V': moveMountFlags,
	}
	valueTables = map[byte][]flagName{'C': fsconfigCmds, 'I': ioctls, 'P': prctls, 'R': rlimits}
)

var (
	atFlags      = []flagName{{unix.AT_EMPTY_PATH, "AT_EMPTY_PATH"}, {unix.AT_RECURSIVE, "AT_RECURSIVE"}, {unix.AT_SYMLINK_NOFOLLOW, "AT_SYMLINK_NOFOLLOW"}}
	fsconfigCmds = []flagName{
		{unix.FSCONFIG_SET_FLAG, "FSCONFIG_SET_FLAG"}, {unix.FSCONFIG_SET_STRING, "FSCONFIG_SET_STRING"},
		{unix.FSCONFIG_SET_FD, "FSCONFIG_SET_FD"}, {unix.FSCONFIG_CMD_CREATE, "FSCONFIG_CMD_CREATE"},
		{unix.FSCONFIG_CMD_RECONFIGURE, "FSCONFIG_CMD_RECONFIGURE"},
	}
	mountFlags = []flagName{
		{unix.MS_RDONLY, "MS_RDONLY"}, {unix.MS_NOSUID, "MS_NOSUID"}, {unix.MS_NODEV, "MS_NODEV"}, {unix.MS_NOEXEC, "MS_NOEXEC"},
		{unix.MS_REMOUNT, "MS_REMOUNT"}, {unix.MS_BIND, "MS_BIND"}, {unix.MS_REC, "MS_REC"}, {unix.MS_UNBINDABLE, "MS_UNBINDABLE"},
		{unix.MS_PRIVATE, "MS_PRIVATE"}, {unix.MS_SLAVE, "MS_SLAVE"}, {unix.MS_SHARED, "MS_SHARED"}, {unix.MS_RELATIME, "MS_RELATIME"}, {unix.MS_STRICTATIME, "MS_STRICTATIME"},
	}
	mountAttrs = []flagName{
		{unix.MOUNT_ATTR_RDONLY, "RDONLY"}, {unix.MOUNT_ATTR_NOSUID, "NOSUID"}, {unix.MOUNT_ATTR_NODEV, "NODEV"}, {unix.MOUNT_ATTR_NOEXEC, "NOEXEC"},
		{unix.MOUNT_ATTR__ATIME, "ATIME_MASK"}, {unix.MOUNT_ATTR_NOATIME, "NOATIME"}, {unix.MOUNT_ATTR_STRICTATIME, "STRICTATIME"},
		{unix.MOUNT_ATTR_NODIRATIME, "NODIRATIME"}, {unix.MOUNT_ATTR_IDMAP, "IDMAP"}, {unix.MOUNT_ATTR_NOSYMFOLLOW, "NOSYMFOLLOW"},
	}
	cloneFlags = []flagName{
		{unix.CLONE_NEWNS, "CLONE_NEWNS"}, {unix.CLONE_NEWPID, "CLONE_NEWPID"}, {unix.CLONE_NEWIPC, "CLONE_NEWIPC"}, {unix.CLONE_NEWUTS, "CLONE_NEWUTS"},
		{unix.CLONE_NEWNET, "CLONE_NEWNET"}, {unix.CLONE_NEWUSER, "CLONE_NEWUSER"}, {unix.CLONE_NEWCGROUP, "CLONE_NEWCGROUP"}, {unix.CLONE_NEWTIME, "CLONE_NEWTIME"},
		{unix.CLONE_PIDFD, "CLONE_PIDFD"}, {unix.CLONE_CLEAR_SIGHAND, "CLONE_CLEAR_SIGHAND"}, {unix.CLONE_INTO_CGROUP, "CLONE_INTO_CGROUP"},
		{unix.CLONE_PARENT, "CLONE_PARENT"}, {unix.CLONE_PARENT_SETTID, "CLONE_PARENT_SETTID"},
	}
	openFlags = []flagName{
		{unix.O_PATH, "O_PATH"}, {unix.O_DIRECTORY, "O_DIRECTORY"}, {unix.O_NOFOLLOW, "O_NOFOLLOW"}, {unix.O_CLOEXEC, "O_CLOEXEC"}, {unix.O_RDWR, "O_RDWR"},
		{unix.O_WRONLY, "O_WRONLY"}, {unix.O_CREAT, "O_CREAT"}, {unix.O_EXCL, "O_EXCL"}, {unix.O_NOCTTY, "O_NOCTTY"}, {unix.O_NONBLOCK, "O_NONBLOCK"},
	}
	resolveFlags = []flagName{
		{unix.RESOLVE_IN_ROOT, "IN_ROOT"}, {unix.RESOLVE_NO_MAGICLINKS, "NO_MAGICLINKS"}, {unix.RESOLVE_NO_SYMLINKS, "NO_SYMLINKS"},
		{unix.RESOLVE_NO_XDEV, "NO_XDEV"}, {unix.RESOLVE_BENEATH, "BENEATH"},
	}
	openTreeFlags = []flagName{
		{unix.OPEN_TREE_CLONE, "OPEN_TREE_CLONE"}, {unix.OPEN_TREE_CLOEXEC, "OPEN_TREE_CLOEXEC"}, {unix.AT_RECURSIVE, "AT_RECURSIVE"}, {unix.AT_EMPTY_PATH, "AT_EMPTY_PATH"},
	}
	moveMountFlags = []flagName{
		{unix.MOVE_MOUNT_F_EMPTY_PATH, "MOVE_MOUNT_F_EMPTY_PATH"}, {unix.MOVE_MOUNT_T_EMPTY_PATH, "MOVE_MOUNT_T_EMPTY_PATH"}, {unix.MOVE_MOUNT_T_SYMLINKS, "MOVE_MOUNT_T_SYMLINKS"},
	}
	umountFlags = []flagName{{unix.MNT_DETACH, "MNT_DETACH"}, {unix.UMOUNT_NOFOLLOW, "UMOUNT_NOFOLLOW"}}
	ioctls      = []flagName{
		{unix.TIOCGPTPEER, "TIOCGPTPEER"}, {unix.TIOCSPTLCK, "TIOCSPTLCK"}, {unix.TIOCSCTTY, "TIOCSCTTY"}, {unix.TIOCSWINSZ, "TIOCSWINSZ"},
		{unix.SIOCSIFFLAGS, "SIOCSIFFLAGS"}, {unix.SIOCGIFFLAGS, "SIOCGIFFLAGS"},
	}
	prctls = []flagName{
		{unix.PR_CAP_AMBIENT, "PR_CAP_AMBIENT"}, {unix.PR_SET_NO_NEW_PRIVS, "PR_SET_NO_NEW_PRIVS"}, {unix.PR_CAPBSET_DROP, "PR_CAPBSET_DROP"},
		{unix.PR_SET_KEEPCAPS, "PR_SET_KEEPCAPS"}, {unix.PR_SET_DUMPABLE, "PR_SET_DUMPABLE"},
	}
)
