package kcheck

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// liveExercises are about what happens to a container that runs.
func liveExercises() []Exercise {
	return []Exercise{
		{Name: "pause", Features: []string{"cgroup.freeze"}, Live: LivePause},
		{Name: "kill", Features: []string{"cgroup.kill", "pidfd_send_signal", "waitid P_PIDFD"}, Live: LiveKill},
		{Name: "exec", Features: []string{"setns by pidfd"}, Live: LiveExec, inside: func() []Sight {
			beside := lastLine(text("/proc/1/comm"))
			return []Sight{saw("setns by pidfd", os.Getpid() != 1 && beside == "vminitctl", "pid %d beside %q", os.Getpid(), beside)}
		}},
		{Name: "terminal", Features: []string{"TIOCGPTPEER", "pidfd_getfd"}, Live: LiveTerminal, inside: func() []Sight {
			name, err := os.Readlink("/proc/self/fd/0")
			var in, console unix.Stat_t
			if e := unix.Fstat(0, &in); err == nil {
				err = e
			}
			if e := unix.Stat("/dev/console", &console); err == nil {
				err = e
			}
			ok := err == nil && name == "/dev/pts/0" && in.Rdev == console.Rdev
			return []Sight{
				saw("TIOCGPTPEER", ok, "stdin is %s, the console is the same: %t, %s", name, in.Rdev == console.Rdev, outcome(err)),
				saw("pidfd_getfd", ok, "this came over the terminal"),
			}
		}},
	}
}

// Tick is the process of a live exercise: it writes a dot every 10 ms until it
// is killed, or a minute is over.
func Tick() {
	for range 6000 {
		fmt.Print(".")
		time.Sleep(10 * time.Millisecond)
	}
}
