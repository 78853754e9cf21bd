package sys

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func requireRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		return
	}
	if rung := os.Getenv("VMINIT_RUNG"); rung == "root" || rung == "vm" {
		t.Fatal("must be root")
	}
	t.Skip("must be root")
}

// poke has the kernel tell of a device again.
func poke(t *testing.T) {
	require.NoError(t, os.WriteFile("/sys/class/mem/null/uevent", []byte("change"), 0))
}

func TestUevents(t *testing.T) {
	requireRoot(t)
	events, err := ListenUevents(UeventKernel)
	require.NoError(t, err)
	defer events.Close()
	_, ok := events.Pending()
	for ok { // of somebody else's doing
		_, ok = events.Pending()
	}
	poke(t)
	for {
		e, err := events.Next()
		require.NoError(t, err)
		if e.Get("DEVNAME") == "null" {
			require.Equal(t, "change", e.Get("ACTION"))
			require.Equal(t, "mem", e.Get("SUBSYSTEM"))
			require.Empty(t, e.Get("NOSUCH"))
			break
		}
	}

	// Too many at once: the loss is told of, once, and what comes later is not lost.
	raw, err := events.f.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		require.NoError(t, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4096))
	}))
	for range 100 {
		poke(t)
	}
	_, err = events.Next()
	require.ErrorIs(t, err, ErrEventsLost)
	for ok := true; ok; {
		_, ok = events.Pending()
	}
	poke(t)
	_, err = events.Next()
	require.NoError(t, err)
}

// TestAwaitDevice: every event is a reason to look, those of the kernel and the
// announcement of links, and the end of the context ends it.
func TestAwaitDevice(t *testing.T) {
	requireRoot(t)
	for name, tell := range map[string]func(){"kernel": func() { poke(t) }, "links": func() { require.NoError(t, AnnounceLinks()) }} {
		t.Run(name, func(t *testing.T) {
			var there atomic.Bool
			time.AfterFunc(30*time.Millisecond, func() { there.Store(true); tell() })
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			require.NoError(t, AwaitDevice(ctx, there.Load))
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, AwaitDevice(ctx, func() bool { return false }), context.DeadlineExceeded)
}

func TestAnnounceLinksUnheard(t *testing.T) {
	requireRoot(t)
	require.NoError(t, AnnounceLinks())
}
