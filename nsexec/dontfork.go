//go:build !cgo

package nsexec

import (
	"bytes"
	"fmt"
	"os"
	"runtime/metrics"
	"strconv"

	"golang.org/x/sys/unix"
)

// dontFork keeps the Go heap out of children: copying its page tables would
// cost milliseconds per 100 MB of heap, and no container can read what its
// first process never had. (madvise(2), MADV_DONTFORK, Linux 2.6.16.)
//
// In cgo builds (race-detector tests) C keeps thread data in such mappings that
// the kernel itself writes in the child, so there it does nothing.
type dontFork struct {
	total uint64 // bytes mapped by the Go runtime at the last exclude
}

// grown reports whether the runtime has mapped memory since the last exclude.
func (d *dontFork) grown() bool { return runtimeBytes() != d.total }

// exclude marks everything the child can do without.
func (d *dontFork) exclude() error {
	d.total = runtimeBytes()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("find the Go heap: %w", err)
	}
	for line := range bytes.Lines(maps) {
		start, end, ok := parentOnly(line)
		if !ok {
			continue
		}
		if err := madviseDontFork(start, end-start); err != nil {
			return fmt.Errorf("keep the memory at %#x out of children: %w", start, err)
		}
	}
	return nil
}

func runtimeBytes() uint64 {
	s := [1]metrics.Sample{{Name: "/memory/classes/total:bytes"}}
	metrics.Read(s[:])
	return s[0].Value.Uint64()
}

// parentOnly parses a line of /proc/PID/maps (proc_pid_maps(5)) and reports
// whether it is private writable memory: the Go heap, the runtime's tables and
// the binary's own data. The child has its code and its program, which is a
// shared mapping. What is left to fork need not be copied, and the parent need
// not fault its pages in again after each launch.
func parentOnly(line []byte) (start, end uint64, ok bool) {
	f := bytes.Fields(line)
	if len(f) < 5 || !bytes.Equal(f[1], []byte("rw-p")) || len(f) > 5 && f[5][0] == '[' {
		return 0, 0, false
	}
	lo, hi, _ := bytes.Cut(f[0], []byte("-"))
	start, err1 := strconv.ParseUint(string(lo), 16, 64)
	end, err2 := strconv.ParseUint(string(hi), 16, 64)
	return start, end, err1 == nil && err2 == nil
}

func madviseDontFork(start, length uint64) error {
	_, _, e := unix.RawSyscall(unix.SYS_MADVISE, uintptr(start), uintptr(length), unix.MADV_DONTFORK)
	if e != 0 {
		return e
	}
	return nil
}
