package tasksvc

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGuard(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	luck := errors.New("no luck")
	require.Equal(t, luck, Guard(log, "x", func() error { return luck }))
	require.Empty(t, out.String())
	err := Guard(log, "x", func() error { panic("at the disco") })
	require.ErrorIs(t, err, ErrPanic)
	require.Contains(t, out.String(), "at the disco")
	require.Contains(t, out.String(), "guard_test.go", "the stack of where it happened")
}
