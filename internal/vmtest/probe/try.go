package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// attempt is something a container is usually not allowed to do. Each is
// chosen such that the kernel checks permission first and that nothing lasts
// where it is allowed: EINVAL, EBADF and the like then mean "allowed".
type attempt struct {
	name string
	run  func() error
}

// raw makes a system call that has no arguments or only numbers.
func raw(nr uintptr, args ...uintptr) func() error {
	return func() error {
		var a [6]uintptr
		copy(a[:], args)
		if _, _, errno := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5]); errno != 0 {
			return errno
		}
		return nil
	}
}

// fd keeps nothing of a descriptor but whether it could be had.
func fd(n int, err error) error {
	if err == nil {
		unix.Close(n)
	}
	return err
}

// badFD is a descriptor that cannot be open.
const badFD = ^uintptr(0)

func attempts() []attempt {
	return []attempt{
		// Files and mounts
		{"mount", func() error { return unix.Mount("", "/", "", unix.MS_PRIVATE, "") }},
		{"mount-remount-rw", remountWritable},
		{"umount", func() error { return unix.Unmount("/probe-no-such-mount", unix.MNT_DETACH) }},
		{"fsopen", func() error { return fd(unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)) }},
		{"open_tree", func() error {
			return fd(unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC))
		}},
		{"pivot_root", func() error { return unix.PivotRoot("/", "/") }},
		{"chroot", func() error { return unix.Chroot("/") }},
		{"mknod-char", mknod(unix.S_IFCHR, unix.Mkdev(1, 7))},
		{"mknod-block", mknod(unix.S_IFBLK, unix.Mkdev(7, 250))},
		{"mknod-fifo", mknod(unix.S_IFIFO, 0)},
		{"open-by-handle", openByHandle},
		{"swapon", raw(unix.SYS_SWAPON, 0, 0)},
		{"quotactl", raw(unix.SYS_QUOTACTL, badFD, 0, 0, 0)},
		// Namespaces
		{"unshare-user", unshare(unix.CLONE_NEWUSER)},
		{"unshare-mnt", unshare(unix.CLONE_NEWNS)},
		{"unshare-net", unshare(unix.CLONE_NEWNET)},
		{"unshare-uts", unshare(unix.CLONE_NEWUTS)},
		{"unshare-cgroup", unshare(unix.CLONE_NEWCGROUP)},
		{"setns", setns},
		// Identity
		{"setuid-0", inThread(func() error { return rawOnThread(unix.SYS_SETRESUID, 0, 0, 0) })},
		{"setgid-0", inThread(func() error { return rawOnThread(unix.SYS_SETRESGID, 0, 0, 0) })},
		{"setgroups", inThread(func() error { return rawOnThread(unix.SYS_SETGROUPS, 0, 0) })},
		{"sethostname", sethostname},
		{"raise-memlock", func() error {
			return unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 1 << 16, Max: unix.RLIM_INFINITY}, nil)
		}},
		{"nice-down", inThread(func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -20) })},
		// The kernel at large
		{"reboot", raw(unix.SYS_REBOOT, 0, 0, 0)},
		{"init_module", raw(unix.SYS_INIT_MODULE, 0, 0, 0)},
		{"finit_module", raw(unix.SYS_FINIT_MODULE, badFD, 0, 0)},
		{"delete_module", func() error { return unix.DeleteModule("probe_no_such_module", unix.O_NONBLOCK) }},
		{"kexec_load", raw(unix.SYS_KEXEC_LOAD, 0, 99, 0, ^uintptr(0))},
		{"bpf", raw(unix.SYS_BPF, unix.BPF_PROG_GET_NEXT_ID, 0, 0)},
		{"perf_event_open", raw(unix.SYS_PERF_EVENT_OPEN, 0, 0, badFD, badFD, 0)},
		{"userfaultfd", func() error { return rawFD(unix.SYS_USERFAULTFD, unix.O_CLOEXEC) }},
		{"io_uring_setup", raw(unix.SYS_IO_URING_SETUP, 0, 0)},
		{"ptrace", raw(unix.SYS_PTRACE, unix.PTRACE_ATTACH, 1, 0, 0)},
		{"process_vm_readv", raw(unix.SYS_PROCESS_VM_READV, 1, 0, 0, 0, 0, 0)},
		{"syslog", func() error { _, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil); return err }},
		{"acct", func() error { return unix.Acct("/probe-no-such-file") }},
		{"clock_settime", setClock},
		{"add_key", addKey},
		{"keyctl", func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false); return err }},
		{"personality", raw(unix.SYS_PERSONALITY, 0xffffffff)},
		{"mlock", func() error { return unix.Mlock(make([]byte, 4096)) }},
		{"find-key", findKey},
		// Devices and sockets
		{"tiocsti", func() error { return terminalControl(unix.TIOCSTI, "\x04") }},
		{"tioclinux", func() error { return terminalControl(unix.TIOCLINUX, "\x02") }},
		{"tioccons", func() error { return terminalControl(unix.TIOCCONS, "\x00") }},
		{"open-kmsg", opens("/dev/kmsg", unix.O_RDONLY)},
		{"open-mem", opens("/dev/mem", unix.O_RDONLY)},
		{"open-fuse", opens("/dev/fuse", unix.O_RDWR)},
		{"open-tty", opens("/dev/tty", unix.O_RDWR)},
		{"write-core-pattern", opens("/proc/sys/kernel/core_pattern", unix.O_WRONLY)},
		{"write-sysrq", opens("/proc/sysrq-trigger", unix.O_WRONLY)},
		{"socket-vsock", socket(unix.AF_VSOCK, unix.SOCK_STREAM)},
		{"socket-packet", socket(unix.AF_PACKET, unix.SOCK_RAW)},
		{"socket-raw", socket(unix.AF_INET, unix.SOCK_RAW)},
		{"socket-alg", socket(unix.AF_ALG, unix.SOCK_SEQPACKET)},
		{"socket-netlink", socket(unix.AF_NETLINK, unix.SOCK_RAW)},
	}
}

func runTry(c *invocation) int {
	words := c.parse(1, -1)
	table := attempts()
	if words[0] == "list" {
		for _, a := range table {
			fmt.Println(a.name)
		}
		return 0
	}
	if len(words) == 1 && words[0] == "all" {
		words = nil
		for _, a := range table {
			words = append(words, a.name)
		}
	}
	results := make(map[string]string)
	for _, w := range words {
		run := find(table, w)
		if run == nil {
			c.wrong("attempt "+strconv.Quote(w), fmt.Errorf("unknown: see probe try list"))
		}
		results[w] = errname(run())
	}
	return c.result(results)
}

// find looks w up in the table, then among the forms with an argument.
func find(table []attempt, w string) func() error {
	for _, a := range table {
		if a.name == w {
			return a.run
		}
	}
	kind, arg, ok := strings.Cut(w, ":")
	if !ok {
		return nil
	}
	switch kind {
	case "open":
		return opens(arg, unix.O_RDONLY)
	case "openw":
		return opens(arg, unix.O_WRONLY)
	case "mkdir":
		return func() error { return unix.Mkdir(arg, 0o755) }
	case "unlink":
		return func() error { return os.Remove(arg) }
	case "socket", "nr", "vsock":
		n := numbers(arg)
		switch {
		case n == nil:
			return nil
		case kind == "vsock" && len(n) == 2:
			return func() error { return connectVsock(uint32(n[0]), uint32(n[1])) }
		case kind == "nr" && len(n) <= 7:
			return raw(n[0], n[1:]...)
		case kind == "socket" && len(n) == 2:
			return socket(int(n[0]), int(n[1]))
		}
	}
	return nil
}

// numbers reads N,N... in any base, negative ones too; nil if wrong.
func numbers(s string) []uintptr {
	var list []uintptr
	for f := range strings.SplitSeq(s, ",") {
		n, err := strconv.ParseInt(f, 0, 64)
		if err != nil {
			return nil
		}
		list = append(list, uintptr(n))
	}
	return list
}

func opens(path string, flags int) func() error {
	return func() error { return fd(unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)) }
}

func socket(family, kind int) func() error {
	return func() error { return fd(unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)) }
}

func mknod(kind uint32, dev uint64) func() error {
	return func() error {
		p := fmt.Sprintf("probe-node-%d", os.Getpid())
		err := unix.Mknod(p, kind|0o600, int(dev))
		if err == nil {
			_ = unix.Unlink(p)
		}
		return err
	}
}

// inThread runs f in a thread that ends with it, for what cannot be undone.
func inThread(f func() error) func() error {
	return func() error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread goes
			done <- f()
		}()
		return <-done
	}
}

// rawOnThread changes credentials of the calling thread only.
func rawOnThread(nr uintptr, args ...uintptr) error {
	var a [3]uintptr
	copy(a[:], args)
	if _, _, errno := unix.RawSyscall(nr, a[0], a[1], a[2]); errno != 0 {
		return errno
	}
	return nil
}

// unshare of a user namespace is refused to a process with threads: EINVAL
// would hide what the answer is. So it is asked with clone3 in a child.
func unshare(flag int) func() error {
	return func() error {
		kid := newChild(0, 0)
		kid.args.flags |= uint64(flag)
		pid, errno := kid.fork()
		if errno != 0 {
			return errno
		}
		_, err := unix.Wait4(pid, nil, 0, nil)
		return err
	}
}

// setns to one's own network namespace needs CAP_SYS_ADMIN like any other.
func setns() error {
	n, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(n)
	return unix.Setns(n, unix.CLONE_NEWNET)
}

// setClock sets the time that it is.
func setClock() error {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return err
	}
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

// remountWritable takes "read-only" from the root mount and leaves its other
// flags; the numbers of those are the same in statfs and mount.
func remountWritable() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return err
	}
	const kept = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME | unix.MS_NODIRATIME
	flags := uintptr(st.Flags)&kept | unix.MS_REMOUNT | unix.MS_BIND
	if st.Flags&unix.ST_RELATIME != 0 {
		flags |= unix.MS_RELATIME
	}
	return unix.Mount("", "/", "", flags, "")
}

func sethostname() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	return unix.Sethostname([]byte(unix.ByteSliceToString(u.Nodename[:])))
}

func openByHandle() error {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/", 0)
	if err != nil {
		h = unix.NewFileHandle(1, make([]byte, 8))
	}
	root, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	return fd(unix.OpenByHandleAt(root, h, unix.O_RDONLY|unix.O_CLOEXEC))
}

func addKey() error {
	id, err := unix.AddKey("user", "probe", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING)
	if err == nil {
		_, _ = unix.KeyctlInt(unix.KEYCTL_REVOKE, id, 0, 0, 0)
	}
	return err
}

func rawFD(nr, arg uintptr) error {
	n, _, errno := unix.Syscall(nr, arg, 0, 0)
	if errno != 0 {
		return errno
	}
	return fd(int(n), nil)
}
