package main

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is struct clone_args of clone3(2), kernel 5.3, first version.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
}

// child is what a forked child does; it runs without the Go runtime, so
// everything it needs is prepared before the fork.
type child struct {
	delay     *unix.Timespec // sleep this long, nil for ever
	status    int            // then exit with it
	orphan    *child         // if set: fork this one, report its pid, exit at once
	reportFD  int            // a pipe
	flood     int            // make so many that exit at once, and exit without a look at them; the status is an errno
	args      cloneArgs
	pidBuffer [1]int32
	idle      unix.Timespec
}

func newChild(delay time.Duration, status int) *child {
	c := &child{status: status, idle: unix.Timespec{Sec: 1 << 30}}
	if delay != forever {
		ts := unix.NsecToTimespec(int64(delay))
		c.delay = &ts
	}
	// Signals the runtime handles get their default action back (kernel 5.5).
	c.args = cloneArgs{flags: unix.CLONE_CLEAR_SIGHAND, exitSignal: uint64(unix.SIGCHLD)}
	return c
}

// cloneExit makes a child that exits with status and returns its pid or -errno.
//
//go:noescape
func cloneExit(args *cloneArgs, size, status uintptr) uintptr

// fork starts the child and returns its pid. Only one thread goes along, and
// only raw system calls are safe on the other side.
//
//go:norace
//go:nosplit
func (c *child) fork() (int, unix.Errno) {
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&c.args)), unsafe.Sizeof(c.args), 0)
	if errno != 0 || pid != 0 {
		return int(pid), errno
	}
	for o := c.orphan; o != nil; {
		pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&o.args)), unsafe.Sizeof(o.args), 0)
		if errno == 0 && pid == 0 {
			c, o = o, o.orphan
			continue
		}
		c.pidBuffer[0] = int32(pid)
		if errno != 0 {
			c.pidBuffer[0] = -int32(errno)
		}
		unix.RawSyscall(unix.SYS_WRITE, uintptr(c.reportFD), uintptr(unsafe.Pointer(&c.pidBuffer)), 4)
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	for n := c.flood; n > 0; n-- {
		c.args.flags = unix.CLONE_VM // page tables to copy are most of what a fork takes
		if pid := cloneExit(&c.args, unsafe.Sizeof(c.args), uintptr(n&0xff)); int(pid) < 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, -pid, 0, 0)
		}
	}
	if c.delay != nil {
		unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(c.delay)), 0, 0)
		unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(c.status), 0, 0)
	}
	for {
		unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&c.idle)), 0, 0)
	}
}
