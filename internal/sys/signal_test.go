package sys

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]unix.Signal{
		"TERM": 15, "SIGTERM": 15, "sigkill": 9, "quit": 3, "sigInt": 2,
		"1": 1, "9": 9, "37": 37, "64": 64,
		"RTMIN": 34, "SIGRTMIN+3": 37, "rtmin+30": 64, "RTMIN+0": 34,
		"RTMAX": 64, "sigrtmax-1": 63, "rtmax-30": 34,
	} {
		got, err := ParseSignal(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, bad := range []string{
		"", "0", "65", "-1", "99999999999999999999", "SIG", "SIGNAL", "NOSUCH", "SIGSIGTERM", "TERM ",
		"RTMIN-1", "RTMIN+31", "RTMAX+1", "RTMAX-31", "RTMIN3", "RTMIN+", "RTMIN+x", "RTMIN++1", "RTMIN+9223372036854775807",
	} {
		got, err := ParseSignal(bad)
		require.ErrorIs(t, err, ErrInvalid, "%q", bad)
		require.Zero(t, got, "%q", bad)
	}
}
