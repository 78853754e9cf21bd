package tasksvc

import (
	"reflect"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"vminit/cgroup2"
	"vminit/internal/sys"
)

// fill gives every number in v another value and makes every pointer and slice
// hold something.
func fill(v reflect.Value, next *uint64) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), next)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), next)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), next)
	case reflect.Uint64, reflect.Uint32:
		*next++
		v.SetUint(*next)
	case reflect.Float64:
		*next++
		v.SetFloat(float64(*next))
	case reflect.String:
		v.SetString("name")
	}
}

// TestMetricsAreComplete: every field of the message but the network's gets a
// value, and no two the same.
func TestMetricsAreComplete(t *testing.T) {
	var s cgroup2.Stats
	fill(reflect.ValueOf(&s).Elem(), new(uint64))
	seen := map[string]string{}
	var check func(path string, m protoreflect.Message)
	check = func(path string, m protoreflect.Message) {
		for i := range m.Descriptor().Fields().Len() {
			fd := m.Descriptor().Fields().Get(i)
			at := path + "." + string(fd.Name())
			if at == ".network" {
				continue
			}
			require.True(t, m.Has(fd), at)
			switch v := m.Get(fd); {
			case fd.IsList():
				check(at, v.List().Get(0).Message())
			case fd.Kind() == protoreflect.MessageKind:
				check(at, v.Message())
			case fd.Kind() != protoreflect.StringKind:
				require.Empty(t, seen[v.String()], "%s has the value of another", at)
				seen[v.String()] = at
			}
		}
	}
	check("", metricsOf(&s).ProtoReflect())
}

func TestMetricsOfNothing(t *testing.T) {
	m := metricsOf(&cgroup2.Stats{CPU: &cgroup2.CPUStats{Usage: 1}})
	require.True(t, proto.Equal(&stats.Metrics{CPU: &stats.CPUStat{UsageUsec: 1}}, m), "%v", m)
}

func (h *host) stats(id string) *stats.Metrics {
	r, err := h.Stats(h.ctx(), &taskv3.StatsRequest{ID: id})
	require.NoError(h.t, err)
	require.Equal(h.t, "io.containerd.cgroups.v2.Metrics", r.Stats.TypeUrl)
	m := new(stats.Metrics)
	require.NoError(h.t, proto.Unmarshal(r.Stats.Value, m))
	return m
}

func TestStats(t *testing.T) {
	h := newHost(t)
	_, err := h.Stats(h.ctx(), &taskv3.StatsRequest{ID: "c1"})
	require.ErrorIs(t, err, sys.ErrNotFound)
	_, err = h.Create(h.ctx(), &taskv3.CreateTaskRequest{ID: "c1", Bundle: h.bundle(testSpec("sleep 1000"))})
	require.NoError(t, err)
	m := h.stats("c1")
	require.NotNil(t, m.CPU)
	require.Len(t, m.Network, 1)
	require.Equal(t, "lo", m.Network[0].Name)
	_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c1", Signal: 9})
	require.NoError(t, err)
	_, err = h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c1"})
	require.NoError(t, err)
	require.Empty(t, h.stats("c1").Network, "its namespace is gone")
	h.delete("c1")
}
