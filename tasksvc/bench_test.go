package tasksvc

import (
	"fmt"
	"testing"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"

	"vminit/nsexec/seccomp"
)

func BenchmarkCompile(b *testing.B) {
	spec := testSpec("true")
	ns, err := parseNamespaces(spec.Linux.Namespaces)
	require.NoError(b, err)
	cache := new(seccomp.Cache)
	for b.Loop() {
		pl, err := compileInit(spec, ns, compileOptions{id: "c", bundle: "/b", newRing: true, seccomp: cache})
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
