package tasksvc

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/status"

	"vminit/internal/sys"
)

// maxErrorText bounds the text of a status: an error must fit into a frame,
// whatever a container managed to put into it.
const maxErrorText = 64 << 10

// toStatus turns an error of this daemon into one that carries a gRPC status,
// with its whole text. It is the only place where codes are chosen. A nil
// error stays nil, one that has a status already keeps it.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	class := classOf(err)
	if class == nil {
		class = errdefs.ErrUnknown
	}
	return errgrpc.ToGRPC(classified{err.Error(), class})
}

// classified is a text with a class of errdefs. It unwraps to nothing, so the
// class is what errgrpc finds, not something deeper in the original error.
type classified struct {
	text  string
	class error
}

// Error returns the text as a proto3 string can hold it: one bad byte, from a
// file name say, would make ttrpc tear the whole connection down.
func (c classified) Error() string {
	text := c.text
	if len(text) > maxErrorText {
		text = text[:maxErrorText] + "..."
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

func (c classified) Is(target error) bool { return target == c.class }

// marks are the errors whose class is decided by whoever wrapped them.
var marks = []struct{ mark, class error }{
	{sys.ErrInvalid, errdefs.ErrInvalidArgument},
	{sys.ErrNotFound, errdefs.ErrNotFound},
	{sys.ErrExists, errdefs.ErrAlreadyExists},
	{sys.ErrState, errdefs.ErrFailedPrecondition},
	{sys.ErrUnsupported, errdefs.ErrNotImplemented},
	{context.DeadlineExceeded, context.DeadlineExceeded},
	{os.ErrDeadlineExceeded, context.DeadlineExceeded},
	{context.Canceled, context.Canceled},
}

// errnos are the kernel's answers that say something about the machine or
// about the sizes of an argument, whatever was being done.
//
// ENOENT, EEXIST, ESRCH, EINVAL and the like are absent on purpose. NotFound,
// AlreadyExists and InvalidArgument are promises about the object of the
// request (a host that is told NotFound by Delete forgets the container), so
// only code that knows the object may make them, with a mark. Without one such
// an errno is Unknown, as containerd's own runtimes have it.
var errnos = map[syscall.Errno]error{
	syscall.ENOSPC: errdefs.ErrResourceExhausted,
	syscall.EDQUOT: errdefs.ErrResourceExhausted,
	syscall.ENOMEM: errdefs.ErrResourceExhausted,
	syscall.EMFILE: errdefs.ErrResourceExhausted,
	syscall.ENFILE: errdefs.ErrResourceExhausted,
	syscall.EAGAIN: errdefs.ErrResourceExhausted, // clone(2): a limit on processes
	syscall.EUSERS: errdefs.ErrResourceExhausted,

	syscall.EPERM:  errdefs.ErrPermissionDenied,
	syscall.EACCES: errdefs.ErrPermissionDenied,
	syscall.EROFS:  errdefs.ErrPermissionDenied,

	syscall.ENOSYS:          errdefs.ErrNotImplemented,
	syscall.EOPNOTSUPP:      errdefs.ErrNotImplemented,
	syscall.EAFNOSUPPORT:    errdefs.ErrNotImplemented,
	syscall.EPROTONOSUPPORT: errdefs.ErrNotImplemented,

	syscall.EBUSY:     errdefs.ErrFailedPrecondition,
	syscall.ENOTEMPTY: errdefs.ErrFailedPrecondition,
	syscall.ETXTBSY:   errdefs.ErrFailedPrecondition,

	syscall.E2BIG:        errdefs.ErrInvalidArgument,
	syscall.ENAMETOOLONG: errdefs.ErrInvalidArgument,

	syscall.ETIMEDOUT: context.DeadlineExceeded,
}

// classOf returns the class of the outermost mark, else that of the first
// errno, else nil. The outermost decides because it was put there by the code
// that knew most: "the bundle is invalid" around ENOENT is an invalid bundle.
func classOf(err error) error {
	if class := markOf(err); class != nil {
		return class
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errnos[errno]
	}
	return nil
}

// markOf walks the tree of wrapped errors depth first, outermost first.
func markOf(err error) error {
	if err == nil {
		return nil
	}
	is, _ := err.(interface{ Is(error) bool })
	for _, m := range marks {
		if err == m.mark || is != nil && is.Is(m.mark) {
			return m.class
		}
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		return markOf(e.Unwrap())
	case interface{ Unwrap() []error }:
		for _, sub := range e.Unwrap() {
			if class := markOf(sub); class != nil {
				return class
			}
		}
		return nil
	}
	if class := errdefs.Resolve(err); class != errdefs.ErrUnknown {
		return class // an error of a containerd library
	}
	return nil
}
