package tasksvc

import (
	"fmt"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/nsexec/seccomp"
)

func BenchmarkCompile(b *testing.B) {
	spec := testSpec("true")
	ns, err := parseNamespaces(spec.Linux.Namespaces)
	require.NoError(b, err)
	cache := new(seccomp.Cache)
	for b.Loop() {
		pl, err := compileInit(spec, ns, compileOptions{id: "c", bundle: "/b", keyring: "_ses.c", seccomp: cache})
		if err != nil {
			b.Fatal(err)
		}
		pl.program.Close()
	}
}

func BenchmarkLifecycle(b *testing.B) {
	h := newHost(b)
	bundle := h.bundle(testSpec("true"))
	n := 0
	for b.Loop() {
		n++
		id := fmt.Sprintf("b%d", n)
		_, err := h.Create(b.Context(), &taskv3.CreateTaskRequest{ID: id, Bundle: bundle})
		require.NoError(b, err)
		_, err = h.Start(b.Context(), &taskv3.StartRequest{ID: id})
		require.NoError(b, err)
		_, err = h.Wait(b.Context(), &taskv3.WaitRequest{ID: id})
		require.NoError(b, err)
		_, err = h.Delete(b.Context(), &taskv3.DeleteRequest{ID: id})
		require.NoError(b, err)
	}
}

// BenchmarkPhases reports where a life cycle and an exec spend their time.
func BenchmarkPhases(b *testing.B) {
	h := newHost(b)
	bundle := h.bundle(testSpec("true"))
	_, err := h.Create(b.Context(), &taskv3.CreateTaskRequest{ID: "sleeper", Bundle: h.bundle(testSpec("sleep 1000"))})
	require.NoError(b, err)
	_, err = h.Start(b.Context(), &taskv3.StartRequest{ID: "sleeper"})
	require.NoError(b, err)
	proc := &anypb.Any{Value: []byte(`{"cwd":"/","args":["/bin/true"]}`)}
	took := map[string]time.Duration{}
	phase := func(name string, f func() error) {
		began := time.Now()
		require.NoError(b, f())
		took[name] += time.Since(began)
	}
	n := 0
	for b.Loop() {
		n++
		id := fmt.Sprintf("b%d", n)
		phase("1create", func() error {
			_, err := h.Create(b.Context(), &taskv3.CreateTaskRequest{ID: id, Bundle: bundle})
			return err
		})
		phase("2start", func() error { _, err := h.Start(b.Context(), &taskv3.StartRequest{ID: id}); return err })
		phase("3wait", func() error { _, err := h.Wait(b.Context(), &taskv3.WaitRequest{ID: id}); return err })
		phase("4delete", func() error { _, err := h.Delete(b.Context(), &taskv3.DeleteRequest{ID: id}); return err })
		phase("5exec", func() error {
			_, err := h.Exec(b.Context(), &taskv3.ExecProcessRequest{ID: "sleeper", ExecID: id, Spec: proc})
			return err
		})
		phase("6execstart", func() error {
			_, err := h.Start(b.Context(), &taskv3.StartRequest{ID: "sleeper", ExecID: id})
			return err
		})
		phase("7execwait", func() error {
			_, err := h.Wait(b.Context(), &taskv3.WaitRequest{ID: "sleeper", ExecID: id})
			return err
		})
		phase("8execdelete", func() error {
			_, err := h.Delete(b.Context(), &taskv3.DeleteRequest{ID: "sleeper", ExecID: id})
			return err
		})
	}
	for name, d := range took {
		b.ReportMetric(float64(d.Microseconds())/float64(n), name[1:]+"-us/op")
	}
	_, err = h.Kill(b.Context(), &taskv3.KillRequest{ID: "sleeper", Signal: 9})
	require.NoError(b, err)
	_, err = h.Wait(b.Context(), &taskv3.WaitRequest{ID: "sleeper"})
	require.NoError(b, err)
	h.delete("sleeper")
}
