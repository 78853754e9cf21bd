// Package sys holds the few kernel wrappers and error markers that
// golang.org/x/sys/unix lacks and that more than one room of the house needs.
// It imports nothing of the project and must stay that way.
package sys

import (
	"errors"
	"fmt"
)

// Marks for errors whose cause is not a plain errno. Packages below tasksvc
// wrap them with %w; tasksvc maps them to gRPC codes in one place.
var (
	// ErrInvalid: the caller's input (bundle, options, id, URI) is wrong.
	ErrInvalid = errors.New("invalid argument")
	// ErrUnsupported: the kernel, or this build, lacks the feature asked for.
	ErrUnsupported = errors.New("not supported")
	// ErrNotFound: the thing named does not exist.
	ErrNotFound = errors.New("not found")
	// ErrExists: the thing to be made exists already.
	ErrExists = errors.New("already exists")
	// ErrState: the thing is in a state that does not allow the operation.
	ErrState = errors.New("failed precondition")
)

// marked carries a mark for errors.Is without repeating it in the text.
type marked struct {
	error
	mark error
}

func (m marked) Is(target error) bool { return target == m.mark }
func (m marked) Unwrap() error        { return m.error }

// Mark returns an error that reads like err and for which errors.Is(_, mark) holds.
func Mark(mark, err error) error { return marked{err, mark} }

// Invalidf is fmt.Errorf for errors that are the caller's fault (ErrInvalid).
func Invalidf(format string, args ...any) error {
	return marked{fmt.Errorf(format, args...), ErrInvalid}
}

// Unsupportedf is fmt.Errorf for features that are missing (ErrUnsupported).
func Unsupportedf(format string, args ...any) error {
	return marked{fmt.Errorf(format, args...), ErrUnsupported}
}
