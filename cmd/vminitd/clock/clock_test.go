package clock

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDecide(t *testing.T) {
	for _, tc := range []struct {
		diff            time.Duration
		precise, coarse action
	}{
		{0, doNothing, doNothing},
		{-900 * time.Microsecond, doNothing, doNothing},
		{1100 * time.Microsecond, doSlew, doNothing},
		{-100 * time.Millisecond, doSlew, doNothing},
		{-time.Second, doStep, doNothing},
		{1900 * time.Millisecond, doStep, doNothing},
		{-2100 * time.Millisecond, doStep, doStep},
		{50 * 365 * 24 * time.Hour, doStep, doStep},
	} {
		require.Equal(t, tc.precise, decide(tc.diff, true), "%s", tc.diff)
		require.Equal(t, tc.coarse, decide(tc.diff, false), "%s", tc.diff)
	}
}

func TestOffsetFromRTC(t *testing.T) {
	file := filepath.Join(t.TempDir(), "since_epoch")
	r := &reference{rtc: file}
	_, err := r.offset()
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(file, []byte(strconv.FormatInt(time.Now().Unix()-100, 10)+"\n"), 0o600))
	off, err := r.offset()
	require.NoError(t, err)
	require.InDelta(t, 100, off.Seconds(), 2)
	require.NoError(t, os.WriteFile(file, []byte("soon\n"), 0o600))
	_, err = r.offset()
	require.ErrorContains(t, err, "since_epoch")
}
