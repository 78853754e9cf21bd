package tasksvc

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStopSignal(t *testing.T) {
	for text, want := range map[string]syscall.Signal{
		"": syscall.SIGTERM, "SIGQUIT": syscall.SIGQUIT, "quit": syscall.SIGQUIT, "sigInt": syscall.SIGINT, "9": syscall.SIGKILL,
		"SIGRTMIN+3": 37, "RTMIN": 34, "sigrtmax-1": 63, "RTMAX": 64, "37": 37,
		// What is none is as good as nothing.
		"0": syscall.SIGTERM, "65": syscall.SIGTERM, "-1": syscall.SIGTERM, "SIG": syscall.SIGTERM, "SIGNAL": syscall.SIGTERM,
		"RTMIN+31": syscall.SIGTERM, "RTMAX+1": syscall.SIGTERM, "RTMIN-1": syscall.SIGTERM, "RTMIN+x": syscall.SIGTERM,
	} {
		require.Equal(t, want, stopSignal(map[string]string{stopSignalAnnotation: text}), "%q", text)
	}
	require.Equal(t, syscall.SIGTERM, stopSignal(nil))
}
