package kcheck

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"vminit/nsexec"
)

// Need says how much vminitd depends on a feature.
type Need string

const (
	// Required: without it no container runs, or none safely.
	Required Need = "required"
	// Used where a config or a client asks for what it gives.
	Used Need = "used"
	// Optional: vminitd does without, workloads may want it.
	Optional Need = "optional"
)

// Status is the outcome of a probe.
type Status string

const (
	Works   Status = "works"
	Missing Status = "missing" // this kernel does not have it
	// Denied: permission was refused, so the probe cannot tell.
	Denied Status = "denied"
	// Unavailable: the kernel may have it, but not here and now: switched off,
	// or what the probe needs is not there.
	Unavailable Status = "unavailable"
)

// Feature is one row of the table.
type Feature struct {
	Name  string
	Since string // kernel version that brought it
	Need  Need
	Loses string // what vminitd, or a container, cannot do without it

	// probe returns nil if it works, an errno (wrapped or not) if not, or an
	// error of unavailable.
	probe func(*env) error
	// note adds to a feature that works, such as an ABI's version. May be nil.
	note func(*env) string
}

// Row is a feature as found on this machine.
type Row struct {
	Name   string `json:"name"`
	Since  string `json:"since"`
	Need   Need   `json:"need"`
	Status Status `json:"status"`
	Errno  string `json:"errno,omitempty"`
	Note   string `json:"note,omitempty"`
	Loses  string `json:"loses"`
}

// Features returns the whole table, by theme.
func Features() []Feature {
	return slices.Concat(processFeatures(), pidfdFeatures(), namespaceFeatures(), mountFeatures(), idmapFeatures(), pathFeatures(),
		cgroupFeatures(), deviceFilterFeatures(), seccompFeatures(), securityFeatures(), machineFeatures())
}

// Run probes all features in turn; children are made by l. The error is about
// the probes' own needs; a feature that is missing is none.
func Run(l *nsexec.Launcher) ([]Row, error) {
	e, err := newEnv(l)
	if err != nil {
		return nil, err
	}
	defer e.close()
	var rows []Row
	for _, f := range Features() {
		rows = append(rows, f.row(e))
	}
	return rows, nil
}

func (f Feature) row(e *env) Row {
	r := Row{Name: f.Name, Since: f.Since, Need: f.Need, Loses: f.Loses}
	err := f.probe(e)
	r.Status, r.Errno = classify(err)
	switch {
	case err == nil && f.note != nil:
		r.Note = f.note(e)
	case err == nil:
	case r.Status == Missing && errors.Is(err, unix.ENOSYS) && e.filtered && !olderThan(e.release, f.Since):
		// Linux has it since long: it is a filter that says so.
		r.Status, r.Note = Denied, "answered by a seccomp filter, it seems"
	default:
		r.Note = explain(err)
	}
	return r
}

// unavailable is an error that says why a probe could not be made.
type unavailable struct {
	text  string
	errno error // nil if none was the reason
}

func (u unavailable) Error() string { return u.text }
func (u unavailable) Unwrap() error { return u.errno }

func notHere(errno error, format string, args ...any) error {
	return unavailable{fmt.Sprintf(format, args...), errno}
}

// classify turns a probe's error into a status and the name of the errno.
func classify(err error) (Status, string) {
	if err == nil {
		return Works, ""
	}
	name := ""
	var errno unix.Errno
	if errors.As(err, &errno) {
		if name = unix.ErrnoName(errno); name == "" {
			name = fmt.Sprintf("errno %d", int(errno)) // some leak from inside the kernel, such as ENOTSUPP
		}
	}
	var u unavailable
	switch {
	case errors.As(err, &u):
		return Unavailable, name
	case errno == unix.EPERM || errno == unix.EACCES:
		return Denied, name
	}
	return Missing, name
}

// explain is the text of an error, unless it says no more than its errno.
func explain(err error) string {
	if _, plain := err.(unix.Errno); plain {
		return ""
	}
	return err.Error()
}

// olderThan compares two kernel releases, such as 6.1.0-56-cloud-amd64 and 5.12,
// by their first two numbers. What cannot be read is not older.
func olderThan(a, b string) bool {
	var x, y [2]int
	if n, _ := fmt.Sscanf(a, "%d.%d", &x[0], &x[1]); n < 2 {
		return false
	}
	if n, _ := fmt.Sscanf(b, "%d.%d", &y[0], &y[1]); n < 2 {
		return false
	}
	return slices.Compare(x[:], y[:]) < 0
}

// Verdict is an error that names the required features that are missing, nil if
// there are none.
func Verdict(rows []Row) error {
	var names []string
	for _, r := range rows {
		if r.Need == Required && r.Status == Missing {
			names = append(names, r.Name)
		}
	}
	if names == nil {
		return nil
	}
	return fmt.Errorf("this kernel lacks what vminitd requires: %q", names)
}
