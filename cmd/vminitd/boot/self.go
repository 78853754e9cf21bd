package boot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// oomScore keeps the daemon out of the OOM killer's way without making it
// unkillable: -1000 would be handed to, and kept by, whatever is forked before
// the launcher resets it. proc(5), oom_score_adj.
const oomScore = "-999"

// HideMemory makes the daemon non-dumpable, so that a process on its way into a
// container exposes no memory and no descriptors of ours (PR_SET_DUMPABLE,
// prctl(2)). Without root it would lock the daemon out of its own /proc/self.
func HideMemory() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_DUMPABLE: %w", err)
	}
	return nil
}

// SparedByOOM puts the daemon last in the OOM killer's order. What it launches
// must set its own score afresh.
func SparedByOOM() error { return writeFile("/proc/self/oom_score_adj", oomScore) }

// RaiseLimits sets RLIMIT_NOFILE, soft and hard, to the kernel's ceiling
// (fs.nr_open): a guest with many containers needs several descriptors for each.
// Launched workloads must set their own: a program that closes every descriptor
// up to the limit takes seconds at a million.
func RaiseLimits() error {
	ceiling, err := readUint("/proc/sys/fs/nr_open")
	if err != nil {
		return err
	}
	limit := &unix.Rlimit{Cur: ceiling, Max: ceiling}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, limit); err != nil {
		return fmt.Errorf("set RLIMIT_NOFILE to %d: %w", ceiling, err)
	}
	return nil
}

// AttachConsole points descriptors 0, 1 and 2 at /dev/console where the kernel
// could not open it before it ran PID 1 (no node in the initramfs): the Go
// runtime has then put /dev/null there. It runs after /dev is mounted.
func AttachConsole() error {
	if !isNull(2) {
		return nil
	}
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENODEV) || errors.Is(err, os.ErrNotExist) {
		return nil // a machine without a console is a valid one
	}
	if err != nil {
		return fmt.Errorf("open /dev/console: %w", err)
	}
	defer unix.Close(fd)
	for std := range 3 {
		if err := unix.Dup3(fd, std, 0); err != nil {
			return fmt.Errorf("dup /dev/console to %d: %w", std, err)
		}
	}
	return nil
}

// isNull reports whether fd is the null device (char 1:3).
func isNull(fd int) bool {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
}
