package kcheck

import (
	"os"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

const (
	pidfdThread   = unix.O_EXCL // PIDFD_THREAD, linux/pidfd.h
	pidfdSelf     = -10001      // PIDFD_SELF_THREAD_GROUP
	pidfdInfoExit = 1 << 3      // PIDFD_INFO_EXIT
)

func pidfdFeatures() []Feature {
	return []Feature{
		{Name: "pidfd_open", Since: "5.3", Need: Required, Loses: "no process can be told from a later one with its pid", probe: withSelf(func(int) error { return nil })},
		{Name: "pidfd_send_signal", Since: "5.1", Need: Required, Loses: "signals could hit strangers", probe: withSelf(func(n int) error {
			return unix.PidfdSendSignal(n, 0, nil, 0)
		})},
		{Name: "waitid P_PIDFD", Since: "5.4", Need: Required, Loses: "exits could not be had by identity", probe: withSelf(func(n int) error {
			return expect(unix.Waitid(unix.P_PIDFD, n, nil, unix.WEXITED|unix.WNOHANG, nil), unix.ECHILD) // we are no child of ours
		})},
		{Name: "pidfd_getfd", Since: "5.6", Need: Required, Loses: "no terminals, no seccomp notifications", probe: withSelf(func(n int) error {
			return fd(unix.PidfdGetfd(n, n, 0))
		})},
		{Name: "setns by pidfd", Since: "5.8", Need: Required, Loses: "no exec", probe: func(e *env) error {
			return e.child(unix.CLONE_NEWUTS|unix.CLONE_NEWIPC, func(p *nsexec.Program) {
				self := p.NewReg("self")
				p.Call(unix.SYS_GETPID).Store(self)
				p.Call(unix.SYS_PIDFD_OPEN, self.Arg(), nsexec.Int(0)).Store(self)
				p.Call(unix.SYS_SETNS, self.Arg(), nsexec.Int(unix.CLONE_NEWUTS|unix.CLONE_NEWIPC))
			})
		}},
		{Name: "PIDFD_NONBLOCK", Since: "5.10", Need: Optional, Loses: "an fcntl more for each process", probe: func(*env) error {
			return fd(unix.PidfdOpen(os.Getpid(), unix.O_NONBLOCK))
		}},
		{Name: "PIDFD_THREAD", Since: "6.9", Need: Optional, Loses: "threads have no pidfds", probe: func(*env) error {
			return fd(unix.PidfdOpen(unix.Gettid(), pidfdThread))
		}},
		{Name: "pidfs", Since: "6.9", Need: Optional, Loses: "pidfds cannot be compared by inode", probe: withSelf(func(n int) error {
			var st unix.Statfs_t
			if err := unix.Fstatfs(n, &st); err != nil {
				return err
			}
			if st.Type != unix.PID_FS_MAGIC {
				return unix.ENODEV
			}
			return nil
		})},
		{Name: "PIDFD_GET_INFO", Since: "6.13", Need: Optional, Loses: "credentials of a peer come from /proc", probe: withSelf(func(n int) error {
			return try(unix.SYS_IOCTL, n, unix.PIDFD_GET_INFO, pidfdInfo(0))
		})},
		{Name: "PIDFD_INFO_EXIT", Since: "6.15", Need: Optional, Loses: "only the parent learns an exit status", probe: exitInfo},
		{Name: "PIDFD_SELF", Since: "6.15", Need: Optional, Loses: "a descriptor is needed to name oneself", probe: func(*env) error {
			return try(unix.SYS_PIDFD_SEND_SIGNAL, pidfdSelf, 0, nilArg, 0)
		}},
	}
}

// withSelf gives a probe a pidfd of this process.
func withSelf(probe func(int) error) func(*env) error {
	return func(*env) error {
		n, err := unix.PidfdOpen(os.Getpid(), 0)
		if err != nil {
			return err
		}
		defer unix.Close(n)
		return probe(n)
	}
}

// pidfdInfo is a struct pidfd_info that asks for mask, as large as the number
// of the ioctl says.
func pidfdInfo(mask uint64) []byte {
	const size = unix.PIDFD_GET_INFO >> 16 & 0x3fff
	return append(words(mask), make([]byte, size-8)...)
}

// exitInfo asks for the exit status of a child that has been reaped.
func exitInfo(e *env) error {
	keep := -1
	err := e.run(nsexec.Launch{Cgroup: -1, PIDNS: -1}, func(p *nsexec.Program) { p.Gate("keep") }, func(c *nsexec.Child, _ *nsexec.Registers) (err error) {
		keep, err = unix.FcntlInt(uintptr(c.Pidfd()), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if keep >= 0 {
		defer unix.Close(keep)
	}
	if err != nil {
		return err
	}
	info := pidfdInfo(pidfdInfoExit)
	if err := try(unix.SYS_IOCTL, keep, unix.PIDFD_GET_INFO, info); err != nil {
		return err
	}
	if info[0]&pidfdInfoExit == 0 {
		return unix.EOPNOTSUPP
	}
	return nil
}
