package boot

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Procfs is a procfs instance that is attached nowhere: it works before /proc is
// mounted and leaves no mount behind. fsopen(2), Linux 5.2.
type Procfs struct{ fd int }

// OpenProcfs makes one. The caller closes it.
func OpenProcfs() (Procfs, error) {
	fsfd, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return Procfs{-1}, fmt.Errorf("fsopen proc (needs Linux 5.2): %w", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return Procfs{-1}, fmt.Errorf("fsconfig proc: %w", err)
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return Procfs{-1}, fmt.Errorf("fsmount proc: %w", err)
	}
	return Procfs{fd}, nil
}

// Close gives it back.
func (p Procfs) Close() { unix.Close(p.fd) }

func (p Procfs) open(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(p.fd, name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "proc/" + name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// How late the Go runtime's watchman may be, see [Procfs.CalmRuntime].
const (
	SlackWhileBooting = 10 * time.Millisecond
	SlackAfterwards   = time.Millisecond
)

// CalmRuntime lets the Go runtime's system monitor be late by slack. That thread
// takes the processor from goroutines that stay in a system call, and while
// there are such it wakes every 20 us. In a guest of one CPU each time is an
// interrupt, a timer to program (an exit to the VMM) and two context switches:
// under TCG a third of a boot went there, 580 wakings before serving.
//
// The monitor is the first thread that the runtime makes. If that should change,
// some other thread's timeouts become coarser, which is harmless. Threads and
// children made by the monitor inherit the slack; nsexec resets it for
// children. /proc/PID/timerslack_ns, Linux 4.6; PID may be any thread.
func (p Procfs) CalmRuntime(slack time.Duration) error {
	task, err := p.open("self/task", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer task.Close()
	names, err := task.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list our threads: %w", err)
	}
	monitor := 0
	for _, n := range names {
		if tid, err := strconv.Atoi(n); err == nil && tid != os.Getpid() && (monitor == 0 || tid < monitor) {
			monitor = tid
		}
	}
	if monitor == 0 {
		return errors.New("the Go runtime has no monitor thread")
	}
	f, err := p.open(strconv.Itoa(monitor)+"/timerslack_ns", unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(strconv.FormatInt(slack.Nanoseconds(), 10)); err != nil {
		return fmt.Errorf("set the timer slack of thread %d: %w", monitor, err)
	}
	return nil
}
