package cgroup2

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

func TestPlanUpdate(t *testing.T) {
	tests := []struct {
		name, base, update string
		want               string
	}{
		{"nothing", `{"memory": {"limit": 5}}`, `{}`, ""},
		{"the same again", `{"memory": {"limit": 5}, "pids": {"limit": 3}}`, `{"memory": {"limit": 5}}`, ""},
		{"a first limit", `{}`, `{"pids": {"limit": 3}}`, "pids.max = \"3\"\n"},
		{"a period keeps the quota", `{"cpu": {"quota": 5000, "period": 10000, "shares": 1024}}`, `{"cpu": {"period": 20000}}`,
			"cpu.max = \"5000 20000\"\n"},
		{"swap needs the memory limit", `{"memory": {"limit": 100, "swap": 150}}`, `{"memory": {"swap": 300}}`,
			"memory.swap.max = \"200\"\n"},
		{"swap is what is left of the sum", `{"memory": {"limit": 100, "swap": 150}}`, `{"memory": {"limit": 120}}`,
			"memory.swap.max = \"30\"\nmemory.max = \"120\"\n"},
		{"more memory than the sum", `{"memory": {"limit": 100, "swap": 150}}`, `{"memory": {"limit": 200}}`,
			"invalid: memory.swap is 150: memory and swap together cannot be less than memory.limit, 200\n"},
		{"another device", `{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]}}`,
			`{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 16, "rate": 6}]}}`, "io.max = \"8:16 rbps=6\"\n"},
		{"a limit lifted", `{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 5}]}}`,
			`{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 0}]}}`, "io.max = \"8:0 rbps=max\"\n"},
		{"unified", `{"unified": {"memory.high": "5", "memory.low": "1"}}`, `{"unified": {"memory.high": "6"}}`,
			"memory.high = \"6\"\n"},
		{"huge pages", `{"hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}]}`,
			`{"hugepageLimits": [{"pageSize": "2MB", "limit": 3}]}`,
			"hugetlb.2MB.max = \"3\"\nhugetlb.2MB.rsvd.max = \"3\", if there\n"},
	}
	for _, tt := range tests {
		var base, update specs.LinuxResources
		require.NoError(t, json.Unmarshal([]byte(tt.base), &base), tt.name)
		require.NoError(t, json.Unmarshal([]byte(tt.update), &update), tt.name)
		merged, writes, err := PlanUpdate(&base, &update)
		require.Equal(t, tt.want, render(writes, err), tt.name)
		if err != nil {
			continue
		}
		_, writes, err = PlanUpdate(merged, &update)
		require.NoError(t, err, tt.name)
		require.Empty(t, writes, "%s: the same update once more changes nothing", tt.name)
		var again specs.LinuxResources
		require.NoError(t, json.Unmarshal([]byte(tt.base), &again))
		require.Equal(t, again, base, "%s: the base is left alone", tt.name)
	}
	merged, writes, err := PlanUpdate(nil, nil)
	require.NoError(t, err)
	require.Empty(t, writes)
	require.Equal(t, &specs.LinuxResources{}, merged)
}

// An update of every field overrides every field: none is forgotten when the
// specification grows.
func TestMergeForgetsNoField(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "plan", "everything.json"))
	require.NoError(t, err)
	var everything specs.LinuxResources
	require.NoError(t, json.Unmarshal(data, &everything))
	everything.Devices = nil
	for _, base := range []*specs.LinuxResources{nil, {}, {
		Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{}, BlockIO: &specs.LinuxBlockIO{}, Pids: &specs.LinuxPids{},
	}} {
		require.Equal(t, &everything, mergeResources(base, &everything))
	}
	// Every pointer and string of the structs merged field by field is set in
	// turn and must come through.
	for _, part := range []func(*specs.LinuxResources) reflect.Value{
		func(r *specs.LinuxResources) reflect.Value { return reflect.ValueOf(r.Memory).Elem() },
		func(r *specs.LinuxResources) reflect.Value { return reflect.ValueOf(r.CPU).Elem() },
		func(r *specs.LinuxResources) reflect.Value { return reflect.ValueOf(r.BlockIO).Elem() },
	} {
		fresh := func() *specs.LinuxResources {
			return &specs.LinuxResources{Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{}, BlockIO: &specs.LinuxBlockIO{}}
		}
		for i := range part(fresh()).NumField() {
			update := fresh()
			field := part(update).Field(i)
			switch field.Kind() {
			case reflect.Pointer:
				field.Set(reflect.New(field.Type().Elem()))
			case reflect.String:
				field.SetString("0")
			case reflect.Slice:
				field.Set(reflect.MakeSlice(field.Type(), 1, 1))
			}
			require.Equal(t, update, mergeResources(fresh(), update), "%s", part(update).Type().Field(i).Name)
		}
	}
}
