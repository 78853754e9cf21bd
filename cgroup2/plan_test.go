package cgroup2

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"vminit/internal/sys"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestPlan compares the plan of every testdata/plan/NAME.json with NAME.golden.
func TestPlan(t *testing.T) {
	files, err := filepath.Glob("testdata/plan/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			var r specs.LinuxResources
			require.NoError(t, json.Unmarshal(data, &r))
			golden := strings.TrimSuffix(file, ".json") + ".golden"
			got := render(Plan(&r))
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got)
		})
	}
}

func render(writes []Write, err error) string {
	var b strings.Builder
	for _, w := range writes {
		b.WriteString(w.String() + "\n")
	}
	switch {
	case errors.Is(err, sys.ErrInvalid):
		b.WriteString("invalid: " + err.Error() + "\n")
	case errors.Is(err, sys.ErrUnsupported):
		b.WriteString("unsupported: " + err.Error() + "\n")
	case err != nil:
		b.WriteString("unmarked error: " + err.Error() + "\n")
	}
	return b.String()
}

func TestPlanNil(t *testing.T) {
	writes, err := Plan(nil)
	require.NoError(t, err)
	require.Empty(t, writes)
}

// The formula is the one that runc (1.3.2 and later), crun and Kubernetes agree
// on: 10^((l²+125l)/612 - 7/34), l being the binary logarithm of the shares.
func TestWeightFromShares(t *testing.T) {
	for shares, want := range map[uint64]uint64{
		0: 0, 1: 1, 2: 1, 3: 2, 102: 17, 256: 35, 512: 59, 1024: 100, 2048: 174, 262143: 10000, 262144: 10000, math.MaxUint64: 10000,
	} {
		require.Equal(t, want, weightFromShares(shares), "%d", shares)
	}
	for shares := uint64(3); shares < 262144; shares++ { // rounding must not tell ours from theirs
		l := math.Log2(float64(shares))
		if want := uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612.0-7.0/34.0))); weightFromShares(shares) != want {
			t.Fatalf("%d shares weigh %d, elsewhere %d", shares, weightFromShares(shares), want)
		}
	}
	last := uint64(0)
	for shares := range uint64(262146) {
		weight := weightFromShares(shares)
		if weight < last {
			t.Fatalf("%d shares weigh %d, one less %d", shares, weight, last)
		}
		last = weight
	}
}

// Whatever the memory limits, a plan that is accepted allows exactly the
// difference in swap and never writes a number the kernel would misread.
func TestPlanMemoryProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.OneOf(rapid.SampledFrom([]int64{-2, -1, 0, 1, math.MaxInt64, math.MinInt64}), rapid.Int64Range(0, 1<<40))
		limit, swap := value.Draw(t, "limit"), value.Draw(t, "swap")
		writes, err := Plan(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap}})
		if err != nil {
			if !errors.Is(err, sys.ErrInvalid) {
				t.Fatalf("limit %d swap %d: %v", limit, swap, err)
			}
			return
		}
		for _, w := range writes {
			if w.Value == "max" {
				continue
			}
			n, err := parseUint([]byte(w.Value))
			if err != nil {
				t.Fatalf("%v: %v", w, err)
			}
			if w.File == "memory.swap.max" && limit > 0 && int64(n) != swap-limit {
				t.Fatalf("limit %d swap %d: %v", limit, swap, w)
			}
		}
	})
}

// FuzzPlan feeds arbitrary JSON. A plan names only plain files, and carries
// only values that fit one write.
func FuzzPlan(f *testing.F) {
	files, _ := filepath.Glob("testdata/plan/*.json")
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r specs.LinuxResources
		if json.Unmarshal(data, &r) != nil {
			return
		}
		writes, err := Plan(&r)
		if err != nil {
			if writes != nil || !errors.Is(err, sys.ErrInvalid) && !errors.Is(err, sys.ErrUnsupported) {
				t.Fatalf("%v, %v", writes, err)
			}
			return
		}
		for _, w := range writes {
			controller, _, ok := strings.Cut(w.File, ".")
			if !ok || controller == "" || strings.ContainsAny(w.File, "/\x00 ") || strings.HasPrefix(w.File, "cgroup.procs") {
				t.Fatalf("file %q", w.File)
			}
			if w.Value == "" || len(w.Value) > maxValue || strings.Contains(strings.TrimSuffix(w.Value, "\n"), "\n") {
				t.Fatalf("%s: value %q", w.File, w.Value)
			}
		}
	})
}

// TestPlanMany: a hostile config has as many entries as fit into it. Planning
// them must not take the square of their number.
func TestPlanMany(t *testing.T) {
	const few, factor = 4000, 4
	took := func(entries int) time.Duration {
		r := &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{}, Unified: map[string]string{}}
		for i := range entries {
			d := specs.LinuxThrottleDevice{Rate: 1}
			d.Major, d.Minor = 8, int64(i)
			r.BlockIO.ThrottleReadBpsDevice = append(r.BlockIO.ThrottleReadBpsDevice, d)
			r.Unified[fmt.Sprintf("x.%d", i)] = "1"
		}
		best := time.Hour
		for range 5 {
			began := time.Now()
			writes, err := Plan(r)
			require.NoError(t, err)
			require.Len(t, writes, 2*entries)
			best = min(best, time.Since(began))
		}
		return best
	}
	require.Less(t, took(factor*few), 2*factor*took(few)) // the square is factor*factor
}
