package boot

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// GiveWay runs fn on a thread that has the processor only when no other wants it
// (SCHED_IDLE, sched(7)): what a request waits for comes before what merely has
// to be done. It is for work during which nothing else computes for long, since
// on one processor anything that does holds fn up. Threads and processes that fn
// makes directly inherit the policy; those of the Go runtime do not, which makes
// them elsewhere while the thread is locked. Where the policy cannot be had fn
// runs like everything else.
func GiveWay(fn func()) {
	runtime.LockOSThread()
	idle := setPolicy(unix.SCHED_IDLE) == nil
	fn()
	if !idle || setPolicy(unix.SCHED_NORMAL) == nil {
		runtime.UnlockOSThread()
	} // else the thread ends with its goroutine
}

// setPolicy sets the calling thread's policy. sched_setattr(2), Linux 3.14.
func setPolicy(policy uint32) error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{Policy: policy}, 0)
}
