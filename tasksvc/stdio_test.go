package tasksvc

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
)

// file:// appends to a file, whose directory is made; the same URI twice is one
// stream, and what several write does not get mixed up.
func TestStdioFile(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(t.TempDir(), "to", "be", "made")
	both, apart := "file://"+dir+"/both", "file://"+dir+"/apart"
	run := func(id, stdout, stderr, script string) {
		_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: id, Stdout: stdout, Stderr: stderr, Bundle: h.bundle(testSpec(script))})
		require.NoError(t, err)
		_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: id})
		require.NoError(t, err)
		_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: id})
		require.NoError(t, err)
		h.delete(id)
	}
	run("c1", both, both, "echo 1; echo 2 >&2; echo 3")
	run("c1", both, apart, "echo 4; echo 5 >&2")
	run("c2", "", apart, "echo nobody wants it; echo 6 >&2")
	for name, want := range map[string]string{"both": "1\n2\n3\n4\n", "apart": "5\n6\n"} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
}

// fifo:// is a bare path. A fifo's writer may come and go: its end is not that
// of the input, which CloseIO is.
func TestStdioFifoWriters(t *testing.T) {
	h := newHost(t)
	in, out := h.fifo("in"), h.fifo("out")
	got := h.reader(out)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Stdin: "fifo://" + in, Stdout: "fifo://" + out, Bundle: h.bundle(testSpec("cat; echo end"))})
	require.NoError(t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: "c1"})
	require.NoError(t, err)
	for _, line := range []string{"one\n", "two\n", "three\n"} {
		w, err := os.OpenFile(in, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = w.WriteString(line)
		require.NoError(t, err)
		require.NoError(t, w.Close())
		time.Sleep(50 * time.Millisecond) // nobody else has it open now
	}
	_, err = h.CloseIO(h.ctx(), &taskv3.CloseIORequest{ID: "c1", Stdin: true})
	require.NoError(t, err)
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	require.Zero(t, w.ExitStatus)
	h.delete("c1")
	require.Equal(t, "one\ntwo\nthree\nend\n", got())
}
