package boot

import (
	"fmt"
	"log/slog"
	"runtime/debug"
)

// Runner runs boot steps, times them and decides what a failure means. Its
// fields are set once; after that it is safe for concurrent use.
type Runner struct {
	Timeline *Timeline
	Log      *slog.Logger
	// Fatal is told of a required step that failed. In PID 1 it powers the
	// machine off and does not return.
	Fatal func(step string, err error)
}

// Required runs a step without which the guest is of no use. When fn fails, or
// panics, Fatal is called.
func (r *Runner) Required(name string, fn func() error) {
	if err := r.step(name, true, fn); err != nil {
		r.Fatal(name, err)
	}
}

// Optional runs a step that the guest can do without. A failure is logged and
// recorded, and boot goes on.
func (r *Runner) Optional(name string, fn func() error) {
	_ = r.step(name, false, fn) // step has logged and recorded it
}

// step runs fn, times it, logs how it went and returns its error. A panic
// becomes an error: one broken step must not take PID 1, and with it the
// kernel, down.
func (r *Runner) step(name string, required bool, fn func() error) error {
	e := Entry{Name: name, Required: required, Start: Now()}
	e.Err = r.protect(fn)
	e.End = Now()
	r.Timeline.Add(e)
	if e.Err != nil {
		r.Log.Error("boot step failed", "step", name, "required", required, "err", e.Err)
		return e.Err
	}
	r.Log.Debug("boot step", "step", name, "at", e.Start, "took", e.End-e.Start)
	return nil
}

func (r *Runner) protect(fn func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
			r.Log.Error("panic in a boot step", "panic", v, "stack", string(debug.Stack()))
		}
	}()
	return fn()
}
