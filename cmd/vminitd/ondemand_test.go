package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// makePlace makes a place for a daemon, with what is in one, and returns its lock.
func makePlace(t *testing.T, dir string) string {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0o700))
	for _, name := range []string{"lock", "start", "daemon.log"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	return filepath.Join(dir, "lock")
}

// client takes the lock as clients do, or fails to.
func client(t *testing.T, lock string) (*os.File, error) {
	t.Helper()
	f, err := os.OpenFile(lock, os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f, unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
}

// atPlace is a daemon that has opened its place, but serves nobody.
func atPlace(t *testing.T, lock string) *daemon {
	t.Helper()
	d := &daemon{opts: options{Listen: "/none", IdleLock: lock, CgroupTree: "vminit-test-none"}}
	require.NoError(t, d.openPlace())
	t.Cleanup(func() { unix.Close(d.idleLock) })
	return d
}

// TestLeave: a daemon removes its place when no client wants it.
func TestLeave(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "place")
	lock := makePlace(t, dir)
	d := atPlace(t, lock)
	c, err := client(t, lock)
	require.NoError(t, err)
	require.False(t, d.lockOutClients())
	d.leave()
	require.FileExists(t, filepath.Join(dir, "daemon.log"))
	require.NoError(t, c.Close())

	require.True(t, d.lockOutClients())
	_, err = client(t, lock)
	require.ErrorIs(t, err, unix.EWOULDBLOCK)
	d.letClientsIn()
	c, err = client(t, lock)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.True(t, d.lockOutClients())
	d.leave()
	require.NoDirExists(t, dir)
}

// TestLeaveReplaced: what has come in the place of the daemon's own stays as it is,
// and whose clients are there does not matter to it.
func TestLeaveReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "place")
	lock := makePlace(t, dir)
	d := atPlace(t, lock)
	old, err := client(t, lock)
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(dir))
	require.False(t, d.lockOutClients(), "a client that found it before is still there")
	require.NoError(t, old.Close())

	makePlace(t, dir)
	require.True(t, d.lockOutClients())
	_, err = client(t, lock)
	require.NoError(t, err, "the other's clients are not locked out")
	d.leave()
	for _, name := range []string{"lock", "start", "daemon.log"} {
		require.FileExists(t, filepath.Join(dir, name))
	}

	require.NoError(t, os.RemoveAll(dir))
	d.leave()
}

func TestOpenPlaceMissing(t *testing.T) {
	d := &daemon{opts: options{IdleLock: filepath.Join(t.TempDir(), "lock")}}
	require.ErrorIs(t, d.openPlace(), os.ErrNotExist)
}

// onDemand starts a daemon as vminitctl does, and returns what it says when it is
// ready or cannot be.
func onDemand(t *testing.T, tree string) (*exec.Cmd, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "place")
	lock := makePlace(t, dir)
	d := exec.Command(os.Args[0], "-listen=unix://"+dir+"/rpc.sock", "-stream-listen=unix://"+dir+"/stream.sock",
		"-cgroup-tree="+tree, "-idle-lock="+lock, "-idle-exit=1m", "-ready-fd=3")
	d.Env = append(os.Environ(), childEnv+"=daemon")
	ready, tell, err := os.Pipe()
	require.NoError(t, err)
	defer ready.Close()
	d.ExtraFiles = []*os.File{tell}
	require.NoError(t, d.Start())
	tell.Close()
	t.Cleanup(func() { _ = d.Process.Kill(); _ = d.Wait() })
	require.NoError(t, ready.SetReadDeadline(time.Now().Add(30*time.Second)))
	var said bytes.Buffer
	_, err = said.ReadFrom(ready)
	require.NoError(t, err)
	return d, said.String()
}

// TestTreeOfLivingDaemon: what is in a cgroup tree is killed only when the daemon
// that it belongs to has ended.
func TestTreeOfLivingDaemon(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("VMINIT_RUNG") != "" {
			t.Fatal("the rungs that run this have root")
		}
		t.Skip("needs root")
	}
	tree := fmt.Sprintf("vminit-test-living-%d", os.Getpid())
	dir := filepath.Join(serviceConfig{Options: options{Listen: "/none"}}.cgroupMount(), tree)
	t.Cleanup(func() { _ = os.Remove(dir) })
	first, said := onDemand(t, tree)
	require.Equal(t, "\n", said)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "c1"), 0o755))
	sleeper := exec.Command("sleep", "100")
	require.NoError(t, sleeper.Start())
	defer sleeper.Process.Kill()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "c1", "cgroup.procs"), fmt.Append(nil, sleeper.Process.Pid), 0))

	second, said := onDemand(t, tree)
	require.Contains(t, said, "claim cgroup /"+tree+": another process has claimed it: ")
	require.Contains(t, said, "pkill -f "+tree)
	require.ErrorContains(t, second.Wait(), "exit status 1")
	members, err := os.ReadFile(filepath.Join(dir, "c1", "cgroup.procs"))
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintln(sleeper.Process.Pid), string(members))

	require.NoError(t, first.Process.Kill())
	_ = first.Wait()
	third, said := onDemand(t, tree)
	require.Equal(t, "\n", said)
	require.ErrorContains(t, sleeper.Wait(), "killed")
	require.NoError(t, third.Process.Signal(unix.SIGTERM))
	require.NoError(t, third.Wait())
	require.NoDirExists(t, dir)
}
