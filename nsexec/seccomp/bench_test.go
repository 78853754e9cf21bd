package seccomp

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// filters are for containerd's default profile.
func filters(b *testing.B) map[string]*Filter {
	ours, err := Compile(containerd(b))
	require.NoError(b, err)
	return map[string]*Filter{"ours": ours, "libseccomp": {Insns: readBPF(b, "testdata/libseccomp/containerd.bpf"), Flags: ours.Flags}}
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

// BenchmarkLoad is what a container's start pays for its filter.
func BenchmarkLoad(b *testing.B) {
	for name, f := range filters(b) {
		b.Run(name, func(b *testing.B) {
			b.StopTimer()
			for range b.N {
				require.NoError(b, onThread(func() error {
					b.StartTimer()
					defer b.StopTimer()
					_, err := load(f)
					return err
				}))
			}
		})
	}
}

// BenchmarkCall is what a system call whose argument is checked pays.
func BenchmarkCall(b *testing.B) {
	all := filters(b)
	all["none"] = nil
	for name, f := range all {
		b.Run(name, func(b *testing.B) {
			require.NoError(b, onThread(func() error {
				if f != nil {
					if _, err := load(f); err != nil {
						return err
					}
				}
				b.ResetTimer()
				for range b.N {
					unix.RawSyscall(unix.SYS_PERSONALITY, 0xffffffff, 0, 0)
				}
				return nil
			}))
		})
	}
}

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
