package microvm

import "time"

// tscKHz measures how fast this machine's time stamp counter runs, in kHz, for
// 20 ms; 0 if there is none. QEMU without KVM hands the counter on to guests.
func tscKHz() uint64 {
	epoch := time.Now()
	ticks0, at0 := tscNow(epoch)
	if ticks0 == 0 {
		return 0
	}
	time.Sleep(20 * time.Millisecond)
	ticks1, at1 := tscNow(epoch)
	if ticks1 <= ticks0 || at1 <= at0 {
		return 0
	}
	return (ticks1 - ticks0) * uint64(time.Millisecond) / uint64(at1-at0)
}

// tscNow reads the counter and the time since epoch at once: of ten readings that with the
// least time in between counts, for this thread may be put aside in any.
func tscNow(epoch time.Time) (ticks uint64, at time.Duration) {
	best := time.Hour
	for range 10 {
		before := time.Since(epoch)
		t := rdtsc()
		if d := time.Since(epoch) - before; d < best {
			best, ticks, at = d, t, before+d/2
		}
	}
	return ticks, at
}
