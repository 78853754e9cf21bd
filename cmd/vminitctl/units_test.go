package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	guestapi "vminit/api/services/guest/v1"
	"vminit/internal/microvm"
	"vminit/internal/sys"
)

func TestParseMiB(t *testing.T) {
	for in, want := range map[string]int{"512M": 512, "2G": 2048, "2g": 2048, "1GiB": 1024, "1048576": 1, "1048577b": 2, "1k": 1, "64mb": 64} {
		got, err := parseMiB(in)
		require.NoError(t, err, in)
		require.Equal(t, want, got, in)
	}
	for _, bad := range []string{"", "M", "0", "-1M", "1.5G", "1T", "512 M", "99999999999999999999", "999999999999G", "17000000000G"} {
		_, err := parseMiB(bad)
		require.ErrorIs(t, err, sys.ErrInvalid, bad)
	}
}

func TestParseShare(t *testing.T) {
	dir := t.TempDir()
	sh, err := parseShare(dir + ":/x/")
	require.NoError(t, err)
	require.Equal(t, "/x", sh.target)
	require.False(t, sh.readOnly)
	sh, err = parseShare(dir + ":/x:ro")
	require.NoError(t, err)
	require.True(t, sh.readOnly)
	for _, bad := range []string{"", "x", ":/x", dir + ":x", dir + ":/x:rx", dir + ":/", dir + ":/x:ro:z"} {
		_, err := parseShare(bad)
		require.ErrorIs(t, err, sys.ErrInvalid, bad)
	}
	_, err = parseShare(dir + "/none:/x")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestStartError(t *testing.T) {
	for _, tt := range []struct {
		code codes.Code
		text string
		want int
	}{
		{codes.Unknown, `exec "x": executable file not found in $PATH`, 127},
		{codes.Unknown, `exec "/bin/x": no such file or directory: its interpreter or loader is missing`, 127},
		{codes.Unknown, `exec "/x": no such file or directory (execve)`, 127},
		{codes.PermissionDenied, `exec "/x": permission denied`, 126},
		{codes.Unknown, `exec "/x": exec format error`, 126},
		{codes.PermissionDenied, "clone3: operation not permitted", 125},
		{codes.FailedPrecondition, "container c1 has ended", 125},
	} {
		var exit exitError
		require.ErrorAs(t, startError("c1", status.Error(tt.code, tt.text)), &exit)
		require.Equal(t, tt.want, exit.code, tt.text)
		require.EqualError(t, exit, "start c1: "+tt.text)
	}
}

func TestDeriveStreamAddress(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "stream.sock"), nil, 0o600))
	got, err := deriveStreamAddress("unix://" + dir + "/rpc.sock")
	require.NoError(t, err)
	require.Equal(t, "unix://"+dir+"/stream.sock", got)
	got, err = deriveStreamAddress("vsock://5:1025")
	require.NoError(t, err)
	require.Equal(t, "vsock://5:1026", got)
	for _, bad := range []string{"unix://" + dir + "/x.sock", "unix:///none/rpc.sock", "vsock://5", "", "%"} {
		_, err := deriveStreamAddress(bad)
		require.ErrorIs(t, err, sys.ErrInvalid, bad)
	}
}

func TestCopyUntilKey(t *testing.T) {
	var out bytes.Buffer
	require.ErrorIs(t, copyUntilKey(&out, strings.NewReader("ab\x1dcd"), detachKey), errDetached)
	require.Equal(t, "ab", out.String())
	require.Error(t, copyUntilKey(&out, strings.NewReader("cd"), detachKey))
	require.Equal(t, "abcd", out.String())
}

func TestCache(t *testing.T) {
	c := cache{t.TempDir()}
	fills := 0
	fill := func(f *os.File) error {
		fills++
		_, err := f.WriteString("x")
		return err
	}
	for range 2 {
		path, err := c.get("a", fill)
		require.NoError(t, err)
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, "x", string(text))
	}
	require.Equal(t, 1, fills)

	old := time.Now().Add(-2 * cacheLife)
	require.NoError(t, os.Chtimes(filepath.Join(c.dir, "a"), old, old))
	broken := errors.New("broken")
	_, err := c.get("b", func(*os.File) error { return broken })
	require.ErrorIs(t, err, broken)
	_, err = c.get("c", fill)
	require.NoError(t, err)
	entries, err := os.ReadDir(c.dir)
	require.NoError(t, err)
	require.Len(t, entries, 1) // neither the expired nor the broken
}

func TestOpenCache(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", home)
	c, err := openCache()
	require.NoError(t, err)
	require.Equal(t, filepath.Join(home, "vminit"), c.dir)

	// One that others can write to is not taken, nor one that cannot be made.
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	require.NoError(t, os.Chmod(c.dir, 0o777))
	c, err = openCache()
	require.NoError(t, err)
	require.Equal(t, tmp, filepath.Dir(c.dir))
	t.Setenv("XDG_CACHE_HOME", "/dev/null")
	_, err = openCache()
	require.NoError(t, err)
	require.NoError(t, os.Chmod(c.dir, 0o770))
	_, err = openCache()
	require.ErrorIs(t, err, sys.ErrState)
}

func TestSignals(t *testing.T) {
	ctx, s := watchSignals(t.Context())
	got := make(chan unix.Signal, 8)
	s.forwardTo(func(sig unix.Signal) { got <- sig })
	s.handle(unix.SIGTERM)
	s.handle(unix.SIGUSR1)
	require.Equal(t, unix.SIGTERM, <-got)
	require.Equal(t, unix.SIGUSR1, <-got)
	require.NoError(t, ctx.Err())
	s.handle(unix.SIGINT)
	s.handle(unix.SIGINT)
	require.Error(t, ctx.Err())
	require.Equal(t, interrupted{unix.SIGINT}, context.Cause(ctx))
	s.stop()

	ctx, s = watchSignals(t.Context())
	s.handle(unix.SIGUSR1) // means nothing before there is a container
	require.NoError(t, ctx.Err())
	s.handle(unix.SIGTERM)
	require.Error(t, ctx.Err())
	s.stop()
}

func TestTimeline(t *testing.T) {
	zero := time.Unix(1000, 0)
	at := func(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }
	var tl timeline
	tl.machine([]microvm.Mark{{Name: microvm.MarkStart, At: at(0)}, {Name: microvm.MarkMonitor, At: at(50)}, {Name: microvm.MarkReady, At: at(900)}})
	tl.add(row{Where: onHost, Name: "create", Start: at(900), End: at(950)})
	// The guest's answer was made between 1000 and 1010 on our clock, at 905 on its own.
	tl.guest(&guestapi.TimelineResponse{NowNs: 905e6, Spans: []*guestapi.Span{
		{Name: "boot/kernel", EndNs: 700e6},
		{Name: "boot/x", StartNs: 700e6, EndNs: 710.5e6, Error: "broken"},
	}}, at(1000), at(1010), time.Time{})
	var out bytes.Buffer
	require.NoError(t, tl.print(&out, false))
	require.Equal(t, strings.TrimPrefix(`
     at ms     took ms  where  what
       0.0        50.0  host   start QEMU
     100.0       700.0  guest  boot/kernel
     800.0        10.5  guest  boot/x: broken
     900.0        50.0  host   create
     900.0              host   guest serves
`, "\n"), out.String())

	out.Reset()
	require.NoError(t, tl.draw(&out))
	require.NoError(t, xml.Unmarshal(out.Bytes(), new(struct{})))
	require.Equal(t, 5+1, strings.Count(out.String(), "<rect"))
	require.Equal(t, 100*time.Millisecond, gridStep(900*time.Millisecond))

	tl = timeline{}
	tl.guest(&guestapi.TimelineResponse{NowNs: 80e9, Spans: []*guestapi.Span{{Name: "boot/kernel", EndNs: 79.7e9}, {Name: "boot/x", StartNs: 79.7e9, EndNs: 79.8e9}}}, at(1000), at(1000), at(0))
	rows := tl.sorted()
	require.Equal(t, at(0), rows[0].Start)
	require.Equal(t, at(700), rows[0].End)
	require.Equal(t, at(700), rows[1].Start)
}

// TestCommandTree makes sure that every verb explains itself and takes the
// global flags of other runtimes.
func TestCommandTree(t *testing.T) {
	root := newRootCommand(new(globals))
	for _, c := range root.Commands() {
		require.NotEmpty(t, c.Short, c.Name())
		for _, sub := range c.Commands() {
			require.True(t, sub.Hidden || sub.Short != "", sub.Name())
		}
	}
	for _, tt := range []struct {
		args []string
		code int
	}{
		{[]string{"--root", "/x", "--log", "/dev/null", "--log-format=json", "--systemd-cgroup=false", "--cgroup-manager=cgroupfs", "version"}, 0},
		{[]string{"--systemd-cgroup", "version"}, 1},
		{[]string{"--cgroup-manager=systemd", "version"}, 1},
		{[]string{"nonsense"}, 1},
		{[]string{"run"}, 125},
		{[]string{"run", "--rootfs", "/no/such", "--", "true"}, 125},
		{[]string{"run", "--rootfs", "/no/such", "--memory", "lots", "--", "true"}, 125},
		{[]string{"run", "--rootfs", "/no/such", "--accel", "xen", "--", "true"}, 125},
		{[]string{"run", "--bundle", "b", "id"}, 125},
		{[]string{"vm", "stop", "no-such-vm"}, 1},
		{[]string{"--address", "vm://no-such-vm", "info"}, 1},
	} {
		t.Setenv(microvm.StateDirEnv, t.TempDir())
		t.Setenv("XDG_CACHE_HOME", t.TempDir())
		require.Equal(t, tt.code, execute(t.Context(), tt.args), "%s", tt.args)
	}
}
