// Package power takes the guest down in order: hooks first (stop serving, drain
// events), then every process, then dirty pages, then filesystems, then the
// machine. Each phase has a deadline, so that a stuck disk or a stuck hook
// delays the end and never prevents it.
//
// It must only be used by PID 1, which never returns from here: a PID 1 that
// exits panics the kernel.
package power

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Action is how the machine is to end.
type Action int

const (
	// Off powers the machine off.
	Off Action = iota
	// Restart resets it. A virtual machine started with "no reboot" ends too.
	Restart
)

func (a Action) String() string {
	if a == Restart {
		return "restart"
	}
	return "power off"
}

// Deadlines of the phases that this package owns.
const (
	killTimeout    = 2 * time.Second
	syncTimeout    = 10 * time.Second
	unmountTimeout = 5 * time.Second
	flushTimeout   = time.Second
)

// Hook is one thing to bring to an end before the machine goes down. Run should
// return when ctx ends; when it does not, it is left behind.
type Hook struct {
	Name    string
	Timeout time.Duration
	Run     func(ctx context.Context) error
}

// Plan is everything an ordered end needs to know.
type Plan struct {
	Action Action
	Hooks  []Hook // run in this order
	Log    *slog.Logger
	// Flush writes out what Log has buffered; nil when it buffers nothing.
	Flush func(ctx context.Context) error
}

// Down ends the machine in order. It does not return in PID 1; anywhere else it
// returns an error without having killed, unmounted or switched off anything.
func Down(p Plan) error {
	p.runHooks()
	if os.Getpid() != 1 {
		return errors.New("not PID 1: the machine is not ours to switch off")
	}
	p.phase("kill processes", killTimeout, killAll)
	p.phase("sync", syncTimeout, func(context.Context) error { unix.Sync(); return nil })
	p.phase("unmount", unmountTimeout, unmountAll)
	p.Log.Info("machine ends", "action", p.Action.String())
	if p.Flush != nil {
		p.phase("flush the log", flushTimeout, p.Flush)
	}
	End(p.Action)
	return nil
}

// End is the last resort: no hooks, no unmounting, dirty pages written only if
// that takes no time. It does not return in PID 1.
func End(action Action) {
	if os.Getpid() != 1 {
		return
	}
	bounded(context.Background(), time.Second, func(context.Context) error { unix.Sync(); return nil })
	for _, cmd := range commands(action, runtime.GOARCH, hasACPI()) {
		_ = unix.Reboot(cmd) // returns only on failure: try the next
	}
	for {
		_ = unix.Pause() // PID 1 must not exit, whatever happens
	}
}

// CatchCtrlAltDel has the kernel send SIGINT to PID 1 on ctrl-alt-del, which is
// how some VMMs ask for the end, instead of resetting at once: reboot(2).
func CatchCtrlAltDel() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		return fmt.Errorf("reboot CAD_OFF: %w", err)
	}
	return nil
}

// commands returns the reboot(2) commands to try in order. On x86 power off
// needs ACPI: a machine without it would halt its CPUs and stay, so it is reset
// instead, by which a VMM without ACPI knows that its guest is done.
func commands(action Action, arch string, acpi bool) []int {
	const off, restart = unix.LINUX_REBOOT_CMD_POWER_OFF, unix.LINUX_REBOOT_CMD_RESTART
	if action == Restart || arch == "amd64" && !acpi {
		return []int{restart, off}
	}
	return []int{off, restart}
}

// hasACPI reports whether the firmware has ACPI tables. A guest that dies before
// it has mounted /sys cannot know; nearly all machines have them.
func hasACPI() bool {
	_, err := os.Stat("/sys/firmware")
	if err != nil {
		return true
	}
	_, err = os.Stat("/sys/firmware/acpi")
	return err == nil
}

func (p Plan) runHooks() {
	for _, h := range p.Hooks {
		p.phase(h.Name, h.Timeout, h.Run)
	}
}

// phase runs one part and logs what went wrong; the end goes on regardless.
func (p Plan) phase(name string, timeout time.Duration, run func(context.Context) error) {
	began := time.Now()
	if err := bounded(context.Background(), timeout, run); err != nil {
		p.Log.Error("shutdown step failed", "step", name, "err", err)
		return
	}
	p.Log.Debug("shutdown step", "step", name, "took", time.Since(began))
}

// bounded runs fn for at most timeout, whether or not fn heeds its context, and
// turns a panic into an error.
func bounded(ctx context.Context, timeout time.Duration, fn func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	done := make(chan error, 1) // buffered: a late fn must not hang for ever
	go func() {
		defer func() {
			if v := recover(); v != nil {
				done <- fmt.Errorf("panic: %v", v)
			}
		}()
		done <- fn(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("not done after %v: %w", timeout, ctx.Err())
	}
}
