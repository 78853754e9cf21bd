package seccomp

import (
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

func BenchmarkCompile(b *testing.B) {
	p := containerd(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := compile(p, specs.ArchX86_64); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCached(b *testing.B) {
	var c Cache
	p := containerd(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSteps counts instructions, which is what a call pays for.
func BenchmarkSteps(b *testing.B) {
	p := containerd(b)
	f, err := compile(p, specs.ArchX86_64)
	require.NoError(b, err)
	rnd := rand.New(rand.NewPCG(1, 2))
	total, n := 0, 0
	for b.Loop() {
		d := randomData(rnd, p)
		_, steps := run(f.Insns, d)
		total += steps
		n++
	}
	b.ReportMetric(float64(total)/float64(n), "insns/call")
}
