package tasksvc

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/vmtest/probe/report"
	"vminit/internal/vmtest/testroot"
)

// probeBinary is built once.
var probeBinary = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "probe")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	name, err := testroot.Probe(dir)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(name)
})

// probeBundle writes a bundle with users, groups and the probe.
func (h *host) probeBundle(spec *specs.Spec) string {
	dir := h.t.TempDir()
	probe, err := probeBinary()
	require.NoError(h.t, err)
	require.NoError(h.t, os.WriteFile(filepath.Join(dir, "probe"), probe, 0o755))
	require.NoError(h.t, testroot.Build(filepath.Join(dir, "rootfs"), testroot.WithProbe(filepath.Join(dir, "probe"))))
	data, err := json.Marshal(spec)
	require.NoError(h.t, err)
	require.NoError(h.t, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
	return dir
}

// probeSpec is a container of default shape whose process tells what it sees.
func probeSpec() *specs.Spec {
	s := testSpec("")
	s.Process.Args = []string{"/bin/probe"}
	s.Hostname = "" // tests may take the namespace away
	return s
}

// report runs a container until its probe has reported.
func (h *host) report(id string, spec *specs.Spec) *report.Report {
	out := h.fifo(id + "-report")
	read := h.reader(out)
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: id, Bundle: h.probeBundle(spec), Stdout: out})
	require.NoError(h.t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: id})
	require.NoError(h.t, err)
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: id})
	require.NoError(h.t, err)
	h.delete(id)
	return parseReport(h.t, read())
}

// execReport does the same for an exec in a running container.
func (h *host) execReport(id, exec string, proc *specs.Process) *report.Report {
	out := h.fifo(id + exec)
	read := h.reader(out)
	h.startExec(id, exec, proc, out)
	_, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: id, ExecID: exec})
	require.NoError(h.t, err)
	_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: id, ExecID: exec})
	require.NoError(h.t, err)
	return parseReport(h.t, read())
}

func (h *host) startExec(id, exec string, proc *specs.Process, out string) {
	data, err := json.Marshal(proc)
	require.NoError(h.t, err)
	_, err = h.Exec(h.ctx(), &taskv3.ExecProcessRequest{ID: id, ExecID: exec, Spec: &anypb.Any{Value: data}, Stdout: out})
	require.NoError(h.t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: id, ExecID: exec})
	require.NoError(h.t, err)
}

// running starts a container that stays, and ends it with the test.
func (h *host) running(id string, spec *specs.Spec) {
	_, err := h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: id, Bundle: h.probeBundle(spec)})
	require.NoError(h.t, err)
	_, err = h.Start(h.ctx(), &taskv3.StartRequest{ID: id})
	require.NoError(h.t, err)
	h.t.Cleanup(func() {
		_, err := h.Kill(h.ctx(), &taskv3.KillRequest{ID: id, Signal: 9})
		require.NoError(h.t, err)
		_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: id})
		require.NoError(h.t, err)
		h.delete(id)
	})
}

func parseReport(t testing.TB, text string) *report.Report {
	r := new(report.Report)
	require.NoError(t, json.Unmarshal([]byte(text), r), "%.300s", text)
	return r
}
