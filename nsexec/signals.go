package nsexec

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ignoredSignals returns the signals that this process ignores. A daemon that
// was started with nohup, or by a program that ignores some, would pass that on
// to every container: CLONE_CLEAR_SIGHAND resets handlers only, and execve keeps
// what is ignored.
func ignoredSignals() ([]int, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, fmt.Errorf("look for ignored signals: %w", err)
	}
	return parseIgnored(string(status))
}

// parseIgnored reads SigIgn of /proc/PID/status (proc_pid_status(5)): bit n
// stands for signal n+1.
func parseIgnored(status string) (list []int, err error) {
	_, line, _ := strings.Cut(status, "\nSigIgn:")
	line, _, _ = strings.Cut(line, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	if err != nil {
		return nil, fmt.Errorf("look for ignored signals: SigIgn in /proc/self/status: %w", err)
	}
	for n := range 64 {
		if mask>>n&1 == 1 {
			list = append(list, n+1)
		}
	}
	return list, nil
}

// heedSignals lengthens a prologue of n instructions by those that give signals
// their default action again.
func (p *Program) heedSignals(n int, ignored []int) (int, error) {
	if len(ignored) == 0 {
		return n, nil
	}
	act := p.Buffer(32) // struct sigaction of the kernel: SIG_DFL, no flags, empty mask
	for _, sig := range ignored {
		*p.mem.prologue(n) = insn{nr: unix.SYS_RT_SIGACTION, args: [6]uint64{uint64(sig), act.v, 0, 8}}
		n++
	}
	return n, p.err
}
