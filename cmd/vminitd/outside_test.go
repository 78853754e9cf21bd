package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Outside a VM the daemon serves, survives the hangup of its starter, leaves
// the machine alone and ends with status 0 when told to.
func TestOutsideVM(t *testing.T) {
	dir := t.TempDir()
	rpc, stream := filepath.Join(dir, "rpc.sock"), filepath.Join(dir, "stream.sock")
	before, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)

	d := exec.Command(os.Args[0], "-listen", "unix://"+rpc, "-stream-listen=unix://"+stream)
	d.Env = append(os.Environ(), childEnv+"=daemon")
	d.Stderr = os.Stderr
	require.NoError(t, d.Start())
	defer d.Process.Kill()
	for _, path := range []string{rpc, stream} {
		require.Eventually(t, func() bool {
			c, err := net.Dial("unix", path)
			if err == nil {
				c.Close()
			}
			return err == nil
		}, 30*time.Second, 5*time.Millisecond)
	}
	require.NoError(t, d.Process.Signal(syscall.SIGHUP))
	time.Sleep(20 * time.Millisecond)
	require.NoError(t, d.Process.Signal(syscall.SIGTERM))
	require.NoError(t, d.Wait())

	after, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
	_, err = os.Stat(rpc)
	require.ErrorIs(t, err, os.ErrNotExist, "the socket is removed")
}

func TestOutsideVMCannotListen(t *testing.T) {
	d := exec.Command(os.Args[0], "-listen", "unix:///nonexistent/rpc.sock")
	d.Env = append(os.Environ(), childEnv+"=daemon")
	out, err := d.CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 1, exit.ExitCode())
	require.Contains(t, string(out), "vminitd: listen on unix:///nonexistent/rpc.sock")
}
