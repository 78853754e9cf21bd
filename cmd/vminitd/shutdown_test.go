package main

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/cmd/vminitd/power"
)

// Each signal that asks for the end, and how it then ends.
func TestSignals(t *testing.T) {
	for s, want := range map[unix.Signal]power.Action{
		unix.SIGTERM: power.Off, unix.SIGINT: power.Off, unix.SIGPWR: power.Off, sigPowerOff: power.Off, sigReboot: power.Restart,
	} {
		e := newEnding()
		watchSignals(e, slog.New(slog.DiscardHandler), defaultOptions())
		for _, harmless := range []unix.Signal{unix.SIGHUP, unix.SIGPIPE, s} {
			require.NoError(t, unix.Kill(unix.Getpid(), harmless))
		}
		select {
		case r := <-e.asked:
			require.Equal(t, want, r.action, "%v: %s", s, r.reason)
		case <-time.After(10 * time.Second):
			require.Fail(t, "it was not heeded", "%v", s)
		}
	}
}
