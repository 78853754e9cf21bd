package report

import "golang.org/x/sys/unix"

// What the entry point in early_*.s saw before the Go runtime started. The
// runtime unblocks most signals, installs handlers over ignored ones, raises
// RLIMIT_NOFILE and opens /dev/null in place of closed standard descriptors;
// afterwards nobody can tell. Written once, before there are threads.
//
// The entry point is used if the program is linked with -E vminit_probe_entry.
var (
	earlySeen    uint64    // 1 if it ran
	earlyBlocked uint64    // signal mask, signal n is bit n-1
	earlyPending uint64    // likewise, of those blocked (rt_sigpending(2)); later the runtime sends itself SIGURG
	earlyIgnored uint64    // likewise, signals with SIG_IGN
	earlyNofile  [2]uint64 // soft, hard
	earlyClosed  uint64    // bit n: descriptor n was closed
	earlyAction  [4]uint64 // scratch: struct sigaction of rt_sigaction(2)
)

// early replaces what the runtime has changed by what was there.
func (r *Report) early() {
	r.Early = earlySeen == 1
	if !r.Early {
		return
	}
	r.Signals.Blocked = bitNames(earlyBlocked)
	r.Signals.Pending = bitNames(earlyPending)
	r.Signals.Ignored = bitNames(earlyIgnored)
	r.Rlimits["NOFILE"] = Rlimit{Soft: earlyNofile[0], Hard: earlyNofile[1]}
}

// openedByRuntime tells whether descriptor n was closed at the start.
func openedByRuntime(n int) bool {
	return n <= unix.Stderr && earlyClosed&(1<<n) != 0
}
