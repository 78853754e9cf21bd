package nsexec

import (
	"io"
	"os"
	"os/signal"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestParseIgnored(t *testing.T) {
	list, err := parseIgnored("SigBlk:\t0000000000000000\nSigIgn:\t0000000080001001\nSigCgt:\t0000000000000000\n")
	require.NoError(t, err)
	require.Equal(t, []int{1, 13, 32}, list)
	list, err = parseIgnored("Name:\tx\nSigIgn:\t0000000000000000\n")
	require.NoError(t, err)
	require.Empty(t, list)
	for _, bad := range []string{"", "Name:\tx\n", "Name:\tx\nSigIgn:\tg\n"} {
		_, err := parseIgnored(bad)
		require.Error(t, err)
	}
}

// TestIgnoredSignalsEndHere: a daemon under nohup has containers that can be
// hung up.
func TestIgnoredSignalsEndHere(t *testing.T) {
	requireRoot(t)
	signal.Ignore(unix.SIGHUP, unix.SIGUSR1)
	defer signal.Reset(unix.SIGHUP, unix.SIGUSR1)
	l, err := NewLauncher()
	require.NoError(t, err)
	r, w, err := os.Pipe()
	require.NoError(t, err)
	null := devNull(t)
	c, err := l.Start(Launch{Program: bare(t, plainProcess("cat", "/proc/self/status"), null, w, null, ""), Cgroup: -1, PIDNS: -1})
	require.NoError(t, err)
	w.Close()
	require.NoError(t, c.AwaitExec(soon()))
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Zero(t, wait(t, c.Process).Code)
	_, after, _ := strings.Cut(string(out), "\nSigIgn:\t")
	require.Equal(t, "0000000000000000", after[:16])
}
