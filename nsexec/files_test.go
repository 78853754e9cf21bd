package nsexec

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestPassFiles: the program finds the files in their order from 3 on and
// nothing else, whatever numbers they and the launch's own have in the parent.
func TestPassFiles(t *testing.T) {
	requireRoot(t)
	for _, n := range []int{1, 5, 250} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			r, w, err := os.Pipe()
			require.NoError(t, err)
			defer r.Close()
			null := devNull(t)
			var fds []int
			for i := range n {
				f, err := unix.MemfdCreate(fmt.Sprintf("file%d", i), unix.MFD_CLOEXEC)
				require.NoError(t, err)
				defer unix.Close(f)
				fds = append(fds, f)
			}
			p, err := NewProgram()
			require.NoError(t, err)
			p.PassFiles(n)
			s := p.SetupStdio()
			for i, f := range []*os.File{null, w, w} {
				p.Bind(s[i], int(f.Fd()))
			}
			script := `i=3; while [ -e /proc/$$/fd/$i ]; do readlink /proc/$$/fd/$i; i=$((i+1)); done; n=0; for f in /proc/$$/fd/*; do n=$((n+1)); done; echo $n`
			p.Finish(Finish{Process: plainProcess("sh", "-c", script), Gate: "start"})
			require.NoError(t, p.Err())
			p.BindFiles(fds)
			c, err := launcher(t).Start(Launch{Program: p, Cgroup: -1, PIDNS: -1})
			require.NoError(t, err)
			w.Close()
			_, err = c.AwaitGate(soon())
			require.NoError(t, err)
			require.NoError(t, c.Open())
			require.NoError(t, c.AwaitExec(soon()))
			out, err := io.ReadAll(r)
			require.NoError(t, err)
			var want strings.Builder
			for i := range n {
				fmt.Fprintf(&want, "/memfd:file%d (deleted)\n", i)
			}
			fmt.Fprintf(&want, "%d\n", n+4) // the last is of the directory being read
			require.True(t, want.String() == string(out), "%.2000s", out)
			require.Zero(t, wait(t, c.Process).Code)
		})
	}
	p, err := NewProgram()
	require.NoError(t, err)
	defer p.Close()
	p.PassFiles(2)
	p.SetupStdio()
	p.Finish(Finish{Process: plainProcess("true")})
	p.BindFiles([]int{0})
	_, err = launcher(t).Start(Launch{Program: p, Cgroup: -1, PIDNS: -1})
	require.ErrorContains(t, err, "1 files are bound, not 2")
}
