package nsexec

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/internal/vmtest/testroot"
)

// inSubreaper runs the calling test once more in a process of its own, which
// gets the orphans of what it starts, and there returns a Launcher that reaps
// them until the test ends; in the first process it returns nil, when that is
// over. The test ends only when no child is left.
func inSubreaper(t *testing.T, env ...string) *Launcher {
	t.Helper()
	requireRoot(t)
	if os.Getenv("VMINIT_ORPHANS") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(append(os.Environ(), "VMINIT_ORPHANS=1"), env...)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		t.Logf("%s", out)
		return nil
	}
	require.NoError(t, unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	l := launcher(t)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { l.ReapOrphans(ctx); close(done) }()
	t.Cleanup(func() {
		require.Eventually(t, func() bool {
			_, err := sys.Waitid(unix.P_ALL, 0, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT)
			return err == unix.ECHILD
		}, 20*time.Second, 20*time.Millisecond, "zombies or orphans are left")
		cancel()
		<-done
	})
	return l
}

// startProgram runs a program with nothing but its arguments; nil after an error.
func startProgram(t *testing.T, l *Launcher, null *os.File, args ...string) *Process {
	c, err := l.Start(Launch{Program: bare(t, plainProcess(args...), null, null, null, ""), Cgroup: -1, PIDNS: -1})
	if err == nil {
		err = c.AwaitExec(soon())
	}
	if err != nil {
		t.Error(err)
		return nil
	}
	return c.Process
}

// expectCode waits for the process's end.
func expectCode(t *testing.T, p *Process, want int) {
	if got := wait(t, p); got.Code != want {
		t.Errorf("exit code %d, want %d", got.Code, want)
	}
}

// TestOrphans runs the reaper beside launches: neither takes the other's exits.
func TestOrphans(t *testing.T) {
	l := inSubreaper(t)
	if l == nil {
		return
	}
	null := devNull(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 50 {
				want := (i*50 + n) % 100
				p := startProgram(t, l, null, "sh", "-c", fmt.Sprintf("(sleep 0.0%d &) ; (true &) ; exit %d", n%10, want))
				if p == nil {
					return
				}
				expectCode(t, p, want)
			}
		})
	}
	wg.Wait()
}

// TestOrphanFlood: 100,000 orphans (3,000 in a guest, which is slow) come while
// 1,000 (60) launched processes end, each with the status that is its own.
func TestOrphanFlood(t *testing.T) {
	requireRoot(t)
	probe := os.Getenv(testroot.ProbeEnv)
	if os.Getenv("VMINIT_ORPHANS") == "" {
		var err error
		probe, err = testroot.Probe(t.TempDir())
		require.NoError(t, err)
	}
	l := inSubreaper(t, testroot.ProbeEnv+"="+probe)
	if l == nil {
		return
	}
	orphans, launches := 100_000, 1000
	if os.Getenv("VMINIT_RUNG") == "vm" {
		orphans, launches = 3000, 60
	}
	null := devNull(t)
	flood := startProgram(t, l, null, probe, "flood", fmt.Sprint(orphans))
	require.NotNil(t, flood)
	var wg sync.WaitGroup
	ran := make([]int, 4)
	for i := range ran {
		wg.Go(func() {
			for flooding := true; flooding || ran[i] < launches/len(ran); ran[i]++ {
				want := (i*61 + ran[i]) % 251
				p := startProgram(t, l, null, "sh", "-c", fmt.Sprintf("exit %d", want))
				if p == nil {
					return
				}
				expectCode(t, p, want)
				select {
				case <-flood.Done():
					flooding = false
				default:
				}
			}
		})
	}
	wg.Wait()
	expectCode(t, flood, 0)
	t.Logf("%d orphans, %v launches", orphans, ran)
}
