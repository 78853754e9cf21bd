package kcheck

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

// Flags and options that golang.org/x/sys/unix does not have yet.
const (
	prSchedCoreGet = 0       // PR_SCHED_CORE_GET, linux/prctl.h
	atExecveCheck  = 0x10000 // AT_EXECVE_CHECK, linux/fcntl.h
)

func processFeatures() []Feature {
	return []Feature{
		{Name: "clone3", Since: "5.3", Need: Required, Loses: "no process can be launched", probe: func(e *env) error {
			return e.child(0, func(*nsexec.Program) {})
		}},
		{Name: "clone3 CLONE_CLEAR_SIGHAND", Since: "5.5", Need: Required, Loses: "children would run the daemon's signal handlers", probe: func(*env) error {
			return cloneKnows(unix.CLONE_CLEAR_SIGHAND)
		}},
		{Name: "clone3 CLONE_INTO_CGROUP", Since: "5.7", Need: Required, Loses: "a process would be outside its limits while it starts", probe: intoCgroup},
		{Name: "close_range", Since: "5.9", Need: Required, Loses: "the daemon's files could leak into containers", probe: func(*env) error {
			return try(unix.SYS_CLOSE_RANGE, 0x7ffffff0, 0x7ffffff0, 0)
		}},
		{Name: "CLOSE_RANGE_CLOEXEC", Since: "5.11", Need: Required, Loses: "files could not be kept until execve", probe: func(*env) error {
			return try(unix.SYS_CLOSE_RANGE, 0x7ffffff0, 0x7ffffff0, unix.CLOSE_RANGE_CLOEXEC)
		}},
		{Name: "MADV_DONTFORK", Since: "2.6.16", Need: Required, Loses: "launches would copy the daemon's heap, for the container to read", probe: dontFork},
		{Name: "execveat AT_EMPTY_PATH", Since: "3.19", Need: Optional, Loses: "no execution by descriptor", probe: func(*env) error {
			return expect(try(unix.SYS_EXECVEAT, -1, "", nilArg, nilArg, unix.AT_EMPTY_PATH), unix.EBADF)
		}},
		{Name: "execveat AT_EXECVE_CHECK", Since: "6.14", Need: Optional, Loses: "scripts cannot ask whether they may be run", probe: func(*env) error {
			return expect(try(unix.SYS_EXECVEAT, -1, "", nilArg, nilArg, unix.AT_EMPTY_PATH|atExecveCheck), unix.EBADF)
		}},
		{Name: "memfd_create", Since: "3.17", Need: Optional, Loses: "no anonymous files", probe: func(*env) error {
			return fd(unix.MemfdCreate("vminit-check", unix.MFD_CLOEXEC))
		}},
		{Name: "memfd MFD_NOEXEC_SEAL, MFD_EXEC", Since: "6.3", Need: Optional, Loses: "memfds cannot be kept from being executed", probe: func(*env) error {
			for _, flag := range []int{unix.MFD_NOEXEC_SEAL, unix.MFD_EXEC} {
				if err := fd(unix.MemfdCreate("vminit-check", unix.MFD_CLOEXEC|flag)); err != nil {
					return err
				}
			}
			return nil
		}},
		{Name: "PR_SET_CHILD_SUBREAPER", Since: "3.4", Need: Used, Loses: "outside a VM orphans of containers would escape the daemon", probe: func(e *env) error {
			return e.child(0, func(p *nsexec.Program) {
				p.Call(unix.SYS_PRCTL, nsexec.Int(unix.PR_SET_CHILD_SUBREAPER), nsexec.Int(1))
			})
		}},
		{Name: "sched_setattr", Since: "3.14", Need: Used, Loses: "process.scheduler is refused", probe: func(*env) error {
			_, err := unix.SchedGetAttr(0, 0)
			return err
		}},
		{Name: "core scheduling (PR_SCHED_CORE)", Since: "5.14", Need: Optional, Loses: "containers share cores with strangers' hyperthreads", probe: func(*env) error {
			err := try(unix.SYS_PRCTL, unix.PR_SCHED_CORE, prSchedCoreGet, 0, 0, words(0))
			if errors.Is(err, unix.ENODEV) {
				return notHere(err, "these processors have no hyperthreads")
			}
			return err
		}},
		{Name: "rseq", Since: "4.18", Need: Optional, Loses: "C libraries fall back to slower per-CPU data", probe: func(*env) error {
			return expect(try(unix.SYS_RSEQ, nilArg, 0, 0, 0), unix.EINVAL) // no area of zero length
		}},
		{Name: "membarrier", Since: "4.3", Need: Optional, Loses: "some language runtimes are slower", probe: func(*env) error {
			return try(unix.SYS_MEMBARRIER, 0, 0, 0) // MEMBARRIER_CMD_QUERY
		}},
		{Name: "futex_waitv", Since: "5.16", Need: Optional, Loses: "no waiting for several futexes", probe: func(*env) error {
			return expect(try(unix.SYS_FUTEX_WAITV, nilArg, 0, 0, nilArg, 0), unix.EINVAL)
		}},
		{Name: "process_madvise", Since: "5.10", Need: Optional, Loses: "nobody else can give a process's memory back", probe: func(*env) error {
			return expect(try(unix.SYS_PROCESS_MADVISE, -1, nilArg, 0, unix.MADV_COLD, 0), unix.EBADF)
		}},
		{Name: "process_mrelease", Since: "5.15", Need: Optional, Loses: "a killed process's memory is freed later", probe: func(*env) error {
			return expect(try(unix.SYS_PROCESS_MRELEASE, -1, 0), unix.EBADF)
		}},
	}
}

var nilArg []byte

// cloneKnows asks clone3 about a flag without making a process: the descriptor
// of the cgroup is a bad one, and is looked at after the flags.
func cloneKnows(flag uint64) error {
	return expect(try(unix.SYS_CLONE3, words(flag|unix.CLONE_INTO_CGROUP, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1<<31-1), 88), unix.EBADF)
}

// intoCgroup puts a child into a cgroup if there is one, and asks otherwise.
func intoCgroup(e *env) error {
	if err := cloneKnows(0); err != nil || e.cgroup == "" {
		return err
	}
	return e.inCgroup(e.cgroup, func(*nsexec.Child) error {
		procs, err := os.ReadFile(filepath.Join(e.cgroup, "cgroup.procs"))
		if err == nil && len(procs) == 0 {
			err = errors.New("the child is not in the cgroup")
		}
		return err
	})
}

// dontFork maps a page, keeps it out of children and sees whether it is.
func dontFork(e *env) error {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(page)
	if err := unix.Madvise(page, unix.MADV_DONTFORK); err != nil {
		return err
	}
	addr, unpin := address(page)
	defer unpin()
	err = e.child(0, func(p *nsexec.Program) { p.Call(unix.SYS_STATFS, p.Str("/"), nsexec.Int(addr)) })
	if err == nil {
		return errors.New("a child has memory that it should not")
	}
	return expect(err, unix.EFAULT)
}
