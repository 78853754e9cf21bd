package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"pgregory.net/rapid"

	"vminit/internal/sys"
)

// FuzzCompile: no profile makes the compiler panic; what it accepts the kernel
// accepts, and it means what the profile says.
func FuzzCompile(f *testing.F) {
	if b, err := os.ReadFile("testdata/config-containerd-seccomp.json"); err == nil {
		var c struct {
			Linux struct{ Seccomp json.RawMessage }
		}
		if json.Unmarshal(b, &c) == nil {
			f.Add([]byte(c.Linux.Seccomp), uint64(1))
		}
	}
	for i, s := range []string{
		`{}`, `{"defaultAction":"SCMP_ACT_KILL"}`,
		`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86","SCMP_ARCH_X32","SCMP_ARCH_ARM"],"syscalls":[{"names":["socket","ipc"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_GT"},{"index":0,"value":9,"valueTwo":8,"op":"SCMP_CMP_MASKED_EQ"}]}]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/l","flags":["SECCOMP_FILTER_FLAG_TSYNC"],"syscalls":[{"names":["mount"],"action":"SCMP_ACT_NOTIFY","args":[{"index":5,"value":18446744073709551615,"op":"SCMP_CMP_LE"},{"index":1,"value":4294967296,"op":"SCMP_CMP_NE"}]}]}`,
	} {
		f.Add([]byte(s), uint64(i))
	}
	f.Fuzz(func(t *testing.T, text []byte, seed uint64) {
		var p specs.LinuxSeccomp
		if json.Unmarshal(text, &p) != nil {
			return
		}
		native := specs.ArchX86_64
		if seed%2 == 1 {
			native = specs.ArchAARCH64
		}
		filter, err := compile(&p, native)
		if (err == nil) != (filter != nil) {
			t.Fatal("both or neither of filter and error")
		}
		if err != nil {
			if !errors.Is(err, sys.ErrInvalid) {
				t.Fatalf("unmarked error %v", err)
			}
			return
		}
		if err := verify(filter.Insns); err != nil {
			t.Fatal(err)
		}
		rnd := rand.New(rand.NewPCG(seed, 1))
		for range 20 {
			d := randomData(rnd, &p)
			got, _ := run(filter.Insns, d)
			if want := reference(&p, native, d); got != want {
				t.Fatalf("%+v: filter says %#x, profile %#x", d, got, want)
			}
		}
	})
}

// FuzzReference is TestAgainstReference led by coverage: its profiles are
// valid, so that all of the fuzzer's time goes into what they mean. FuzzCompile
// spends most of its on JSON.
func FuzzReference(f *testing.F) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 64, 1 << 10, 16 << 10} {
		seed := make([]byte, n)
		for i := range seed {
			seed[i] = byte(rnd.Uint32())
		}
		f.Add(seed)
	}
	check := rapid.MakeFuzz(agreesWithReference)
	f.Fuzz(func(t *testing.T, choices []byte) { check(t, prolonged(choices)) })
}

// prolonged continues what the fuzzer has chosen by what follows from it: rapid
// skips inputs that end before it has made all its choices, as most do.
func prolonged(choices []byte) []byte {
	h := fnv.New64a()
	h.Write(choices)
	rnd := rand.New(rand.NewPCG(h.Sum64(), 0))
	for len(choices) < 256<<10 {
		choices = binary.LittleEndian.AppendUint64(choices, rnd.Uint64())
	}
	return choices
}

// randomData makes up a call near what the profile mentions.
func randomData(rnd *rand.Rand, p *specs.LinuxSeccomp) *data {
	a := knownArch(someArches[rnd.IntN(len(someArches))])
	d := &data{arch: a.audit, nr: a.number(a.table[rnd.IntN(len(a.table))]) + uint32(rnd.IntN(3)) - 1}
	if len(p.Syscalls) == 0 {
		return d
	}
	s := p.Syscalls[rnd.IntN(len(p.Syscalls))]
	if i := findCall(s.Names[rnd.IntN(len(s.Names))]); i >= 0 {
		for _, e := range a.table {
			if int(e.name) == i {
				d.nr = a.number(e)
			}
		}
	}
	for i := range d.args {
		if rnd.IntN(4) == 0 {
			d.args[i] = rnd.Uint64()
		}
	}
	for _, arg := range s.Args {
		switch v := []uint64{arg.Value, arg.ValueTwo, rnd.Uint64()}[rnd.IntN(3)]; rnd.IntN(3) {
		case 0:
			d.args[arg.Index] = v + uint64(rnd.IntN(3)) - 1
		case 1:
			d.args[arg.Index] = v ^ 1<<rnd.IntN(64)
		default:
			d.args[arg.Index] = v
		}
	}
	return d
}
