package nsexec

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestRefork goes on with the second child and sees that nothing is left of the
// first.
func TestRefork(t *testing.T) {
	requireRoot(t)
	null := devNull(t)
	l := launcher(t)
	p, err := NewProgram()
	require.NoError(t, err)
	uts := p.JoinFile("uts", unix.CLONE_NEWUTS)
	f, err := os.Open("/proc/self/ns/uts")
	require.NoError(t, err)
	defer f.Close()
	p.Bind(uts, int(f.Fd()))
	forked := p.Refork(unix.CLONE_NEWPID | unix.CLONE_NEWNS)
	for _, in := range p.SetupStdio() {
		p.Bind(in, int(null.Fd()))
	}
	p.Gate("forked")
	p.Finish(Finish{Process: plainProcess("sh", "-c", "exit $$$$")}) // pid 1, twice
	c, err := l.Start(Launch{Program: p, Cgroup: -1, PIDNS: -1})
	require.NoError(t, err)
	first := c.Process
	regs, err := c.AwaitGate(soon())
	require.NoError(t, err)
	require.NoError(t, c.Follow(regs, forked))
	require.NotEqual(t, first.PID(), c.PID())
	require.Equal(t, unix.SIGKILL, first.Exit().Signal)
	require.NoError(t, c.Open())
	require.NoError(t, c.AwaitExec(soon()))
	require.Equal(t, 11, wait(t, c.Process).Code)
	require.Zero(t, l.Children())
}

// A second child that dies before it is followed is the end of the launch.
func TestReforkEndsEarly(t *testing.T) {
	requireRoot(t)
	l := launcher(t)
	p, err := NewProgram()
	require.NoError(t, err)
	p.Refork(0)
	p.Step("give up")
	p.Call(unix.SYS_EXIT_GROUP, Int(3))
	c, err := l.Start(Launch{Program: p, Cgroup: -1, PIDNS: -1})
	require.NoError(t, err)
	_, err = c.receive(time.Now().Add(20 * time.Second))
	require.Error(t, err)
	c.Abandon()
	require.NoError(t, c.Signal(unix.SIGKILL))
	wait(t, c.Process)
	require.Eventually(t, func() bool {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		return pid > 0 || err == unix.ECHILD
	}, 10*time.Second, 10*time.Millisecond)
}
