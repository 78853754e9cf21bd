package power

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"unsafe"

	"golang.org/x/sys/unix"
)

// crashText is the last line that a daemon that fails writes.
var crashText = "vminitd: it has failed and cannot go on, powering off\n"

// crashCommands are the two commands of reboot(2) to try.
var crashCommands [2]uint32

// crashHandler returns the addresses of a signal handler and of what it
// returns to (crash_*.s).
func crashHandler() (handler, restorer uintptr)

// kernelSigaction is struct kernel_sigaction of rt_sigaction(2).
type kernelSigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// OnCrash has the failure of the daemon end the machine in order as far as that
// is possible: what nobody has recovered from, a panic in any goroutine, our own
// or a library's, or the runtime's own verdict (deadlock, concurrent map writes,
// no memory). Without it PID 1 would exit, which panics the kernel with all that
// is not written lost.
//
// The runtime, once it has written what happened and all stacks to the console,
// sends itself SIGABRT. The handler of that signal here is not Go, of which
// nothing works any more at that point: it writes a line, syncs (for which it
// has no deadline), and powers off. It does so only if the signal was sent by
// PID 1 to one of its threads (si_code SI_TKILL, si_pid 1, which the kernel fills
// in); anyone else's is ignored, so os/signal must not be given SIGABRT.
//
// It must only be called by PID 1.
func OnCrash() error {
	for i, c := range commands(Off, runtime.GOARCH, hasACPI()) {
		crashCommands[i] = uint32(c)
	}
	const (
		siginfo, restart, onstack = 0x4, 0x10000000, 0x08000000
		saRestorer                = 0x04000000
	)
	handler, restorer := crashHandler()
	action := kernelSigaction{handler, siginfo | restart | onstack | saRestorer, restorer, ^uint64(0)}
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(unix.SIGABRT), uintptr(unsafe.Pointer(&action)), 0, unsafe.Sizeof(action.mask), 0, 0)
	if errno != 0 {
		return fmt.Errorf("rt_sigaction SIGABRT: %w", errno)
	}
	debug.SetTraceback("crash")
	return nil
}
