package power

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func TestDownRunsHooksInOrderAndBounded(t *testing.T) {
	var mu sync.Mutex // guards ran
	var ran []string
	hook := func(name string, run func(context.Context) error) Hook {
		return Hook{Name: name, Timeout: 20 * time.Millisecond, Run: func(ctx context.Context) error {
			mu.Lock()
			ran = append(ran, name)
			mu.Unlock()
			return run(ctx)
		}}
	}
	began := time.Now()
	err := Down(Plan{Log: quiet(), Hooks: []Hook{
		hook("fails", func(context.Context) error { return errors.New("boom") }),
		hook("panics", func(context.Context) error { panic("boom") }),
		hook("hangs", func(context.Context) error { <-t.Context().Done(); return nil }),
		hook("works", func(context.Context) error { return nil }),
	}})
	require.ErrorContains(t, err, "not PID 1", "a test must never switch its machine off")
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"fails", "panics", "hangs", "works"}, ran)
	require.Less(t, time.Since(began), 5*time.Second)
}

func TestBounded(t *testing.T) {
	err := bounded(t.Context(), time.Millisecond, func(ctx context.Context) error { <-ctx.Done(); return nil })
	if err != nil { // fn may win the race with the deadline
		require.ErrorIs(t, err, context.DeadlineExceeded)
	}
	require.ErrorContains(t, bounded(t.Context(), time.Second, func(context.Context) error { panic("x") }), "panic: x")
	require.NoError(t, bounded(t.Context(), time.Second, func(context.Context) error { return nil }))
}

func TestCommands(t *testing.T) {
	off, restart := unix.LINUX_REBOOT_CMD_POWER_OFF, unix.LINUX_REBOOT_CMD_RESTART
	for _, tt := range []struct {
		action Action
		arch   string
		acpi   bool
		first  int
	}{
		{Off, "amd64", true, off},
		{Off, "amd64", false, restart},
		{Off, "arm64", false, off},
		{Restart, "amd64", true, restart},
		{Restart, "arm64", false, restart},
	} {
		got := commands(tt.action, tt.arch, tt.acpi)
		require.Equal(t, tt.first, got[0], "%+v", tt)
		require.Len(t, got, 2)
	}
}

func TestLasting(t *testing.T) {
	const mounts = `22 1 254:0 / / rw - ext4 /dev/vda rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:22 / /run rw - tmpfs tmpfs rw
30 24 254:16 / /run/bundles/a/mounts/0 ro - erofs /dev/vdb ro
31 24 254:32 / /run/bundles/a/mounts/1 rw - ext4 /dev/vdc rw
32 24 0:40 / /run/bundles/a/rootfs rw - overlay overlay rw
33 22 0:41 / /mnt\040host rw - virtiofs host rw
34 22 0:42 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
`
	list, err := mountinfo.GetMountsFromReader(strings.NewReader(mounts), nil)
	require.NoError(t, err)
	var targets []string
	for _, m := range lasting(list) {
		targets = append(targets, m.Mountpoint)
	}
	require.Equal(t, []string{
		"/mnt host", "/run/bundles/a/rootfs", "/run/bundles/a/mounts/1", "/run/bundles/a/mounts/0", "/",
	}, targets, "the upper filesystem before what it lies on, the root last")
}

func TestKillAllRefusesOutsidePID1(t *testing.T) {
	require.Error(t, killAll(t.Context()))
}
