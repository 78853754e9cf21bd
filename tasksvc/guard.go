package tasksvc

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
)

// ErrPanic is what Guard makes of a panic.
var ErrPanic = errors.New("the daemon failed; its log has the stack")

// Guard runs fn and turns a panic into a line of the log and an error: an
// unrecovered one ends PID 1, and with it every container. Whatever outlives a
// call runs in it: what the goroutine was for may be lost, nothing else.
func Guard(log *slog.Logger, what string, fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			log.Error("panic", "in", what, "panic", v, "stack", string(debug.Stack()))
			err = fmt.Errorf("%s: %w", what, ErrPanic)
		}
	}()
	return fn()
}

// guard is Guard for what has no error.
func guard(log *slog.Logger, what string, fn func()) {
	_ = Guard(log, what, func() error { fn(); return nil })
}
