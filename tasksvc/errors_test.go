package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"vminit/internal/sys"
)

func TestToStatus(t *testing.T) {
	enoent := &fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}
	for _, tc := range []struct {
		name string
		err  error
		code codes.Code
	}{
		{"invalid", sys.Invalidf("bad"), codes.InvalidArgument},
		{"invalid wrapped", fmt.Errorf("create: %w", sys.Invalidf("bad")), codes.InvalidArgument},
		{"not found", sys.Mark(sys.ErrNotFound, errors.New("gone")), codes.NotFound},
		{"plain mark", fmt.Errorf("c1: %w", sys.ErrNotFound), codes.NotFound},
		{"exists", sys.Mark(sys.ErrExists, errors.New("there")), codes.AlreadyExists},
		{"state", sys.Mark(sys.ErrState, errors.New("running")), codes.FailedPrecondition},
		{"unsupported", sys.Unsupportedf("no idmap"), codes.Unimplemented},
		{"deadline", fmt.Errorf("kill: %w", context.DeadlineExceeded), codes.DeadlineExceeded},
		{"io deadline", fmt.Errorf("read: %w", os.ErrDeadlineExceeded), codes.DeadlineExceeded},
		{"cancelled", context.Canceled, codes.Canceled},
		{"errdefs", fmt.Errorf("x: %w", errdefs.ErrUnavailable), codes.Unavailable},

		{"mark around errno", sys.Mark(sys.ErrInvalid, enoent), codes.InvalidArgument},
		{"mark around space", sys.Mark(sys.ErrState, fmt.Errorf("x: %w", syscall.ENOSPC)), codes.FailedPrecondition},
		{"outer mark wins", sys.Mark(sys.ErrState, sys.Mark(sys.ErrNotFound, errors.New("x"))), codes.FailedPrecondition},
		{"first of joined", errors.Join(fmt.Errorf("a: %w", sys.ErrExists), fmt.Errorf("b: %w", sys.ErrInvalid)), codes.AlreadyExists},
		{"errno before cleanup's errno", errors.Join(fmt.Errorf("a: %w", syscall.ENOSPC), fmt.Errorf("b: %w", syscall.EBUSY)), codes.ResourceExhausted},

		{"space", fmt.Errorf("write: %w", syscall.ENOSPC), codes.ResourceExhausted},
		{"memory", syscall.ENOMEM, codes.ResourceExhausted},
		{"descriptors", &fs.PathError{Op: "open", Path: "/x", Err: syscall.EMFILE}, codes.ResourceExhausted},
		{"processes", fmt.Errorf("clone3: %w", syscall.EAGAIN), codes.ResourceExhausted},
		{"permission", syscall.EPERM, codes.PermissionDenied},
		{"read only", syscall.EROFS, codes.PermissionDenied},
		{"no such call", fmt.Errorf("mount_setattr: %w", syscall.ENOSYS), codes.Unimplemented},
		{"busy", syscall.EBUSY, codes.FailedPrecondition},
		{"too big", fmt.Errorf("execve: %w", syscall.E2BIG), codes.InvalidArgument},

		{"errno says nothing of the object", enoent, codes.Unknown},
		{"nor does this", syscall.ESRCH, codes.Unknown},
		{"plain", errors.New("odd"), codes.Unknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := toStatus(tc.err)
			require.Equal(t, tc.code, status.Code(got))
			require.Equal(t, tc.err.Error(), status.Convert(got).Message(), "the whole text must arrive")
			require.Empty(t, status.Convert(got).Details())
			require.Equal(t, got, toStatus(got), "idempotent")
			wrapped := toStatus(fmt.Errorf("more: %w", got))
			require.Equal(t, tc.code, status.Code(wrapped))
		})
	}
	require.NoError(t, toStatus(nil))
	require.ErrorIs(t, errgrpc.ToNative(toStatus(sys.Mark(sys.ErrNotFound, errors.New("x")))), errdefs.ErrNotFound,
		"what a host sees")
}

func TestToStatusText(t *testing.T) {
	require.Equal(t, "no \uFFFD file", status.Convert(toStatus(errors.New("no \xff file"))).Message())
	long := status.Convert(toStatus(errors.New(strings.Repeat("x", 8<<20)))).Message()
	require.LessOrEqual(t, len(long), maxErrorText+16)
}
