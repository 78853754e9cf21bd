package seccomp

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var (
	someArches = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM}
	someOps    = []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
		specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
	someActions = []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKill, specs.ActKillProcess,
		specs.ActTrap, specs.ActTrace, specs.ActLog, specs.ActNotify}
	// someNames: neighbours, multiplexed ones, special and new ones.
	someNames = []string{"read", "open", "close", "stat", "socket", "accept", "send", "socketcall", "ipc", "shmat",
		"semop", "msgget", "clone", "personality", "execveat", "set_tls", "cacheflush", "chown32", "mseal", "clone3", "no_such_call"}
)

// someValue prefers the edges of 32 and 64 bits and small numbers.
func someValue() *rapid.Generator[uint64] {
	return rapid.OneOf(
		rapid.Uint64Range(0, 24),
		rapid.SampledFrom([]uint64{math.MaxUint32 - 1, math.MaxUint32, 1 << 32, 1<<32 + 1, 1 << 63, math.MaxUint64 - 1, math.MaxUint64, 1<<32 | 5, 5<<32 | 5, 5 << 32, 6 << 32, 0x7e020000}),
		rapid.Uint64(),
	)
}

func someProfile(t *rapid.T) *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{ListenerPath: "/run/listener"}
	p.DefaultAction, p.DefaultErrnoRet = someAction(t, "default", len(someActions)-1)
	p.Architectures = rapid.SliceOfNDistinct(rapid.SampledFrom(someArches), 0, 5, rapid.ID[specs.Arch]).Draw(t, "arches")
	for range rapid.IntRange(0, 12).Draw(t, "rules") {
		s := specs.LinuxSyscall{Names: rapid.SliceOfN(rapid.OneOf(rapid.SampledFrom(someNames), anyName()), 1, 6).Draw(t, "names")}
		s.Action, s.ErrnoRet = someAction(t, "action", len(someActions))
		for range rapid.SampledFrom([]int{0, 0, 1, 1, 2, 3, 7}).Draw(t, "conditions") {
			s.Args = append(s.Args, specs.LinuxSeccompArg{
				Index: uint(rapid.IntRange(0, 5).Draw(t, "index")), Op: rapid.SampledFrom(someOps).Draw(t, "op"),
				Value: someValue().Draw(t, "value"), ValueTwo: someValue().Draw(t, "valueTwo"),
			})
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

func anyName() *rapid.Generator[string] {
	return rapid.Map(rapid.IntRange(0, len(callEnds)-1), func(i int) string {
		if callName(i) == "write" { // not with NOTIFY
			return "writev"
		}
		return callName(i)
	})
}

func someAction(t *rapid.T, what string, n int) (specs.LinuxSeccompAction, *uint) {
	a := rapid.SampledFrom(someActions[:n]).Draw(t, what)
	if (a == specs.ActErrno || a == specs.ActTrace) && rapid.Bool().Draw(t, "errno") {
		e := uint(rapid.IntRange(0, 4095).Draw(t, "errnoRet"))
		return a, &e
	}
	return a, nil
}

// someData makes up a call, mostly one the profile has something to say about.
func someData(t *rapid.T, p *specs.LinuxSeccomp) *data {
	a := knownArch(rapid.SampledFrom(someArches).Draw(t, "arch"))
	d := &data{arch: a.audit, nr: rapid.OneOf(rapid.Uint32Range(0, 600), rapid.Uint32()).Draw(t, "nr")}
	values := []uint64{0}
	var numbers []uint32
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if i := findCall(n); i >= 0 {
				for _, e := range a.table {
					if int(e.name) == i {
						numbers = append(numbers, a.number(e))
					}
				}
			}
		}
		for _, arg := range s.Args {
			values = append(values, arg.Value, arg.ValueTwo)
		}
	}
	if len(numbers) > 0 && rapid.IntRange(0, 9).Draw(t, "near") > 0 {
		d.nr = rapid.SampledFrom(numbers).Draw(t, "number") + uint32(rapid.SampledFrom([]int{0, 0, 0, 0, 1, -1}).Draw(t, "off"))
	}
	for i := range d.args {
		d.args[i] = rapid.OneOf(someValue(), rapid.SampledFrom(values)).Draw(t, "arg") + uint64(rapid.IntRange(-1, 1).Draw(t, "off"))
	}
	return d
}

// TestAgainstReference: for any profile and any call, the filter says what the
// profile's text says.
func TestAgainstReference(t *testing.T) { rapid.Check(t, agreesWithReference) }

func agreesWithReference(t *rapid.T) {
	p := someProfile(t)
	native := rapid.SampledFrom([]specs.Arch{specs.ArchX86_64, specs.ArchAARCH64}).Draw(t, "native")
	f, err := compile(p, native)
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(f.Insns); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		d := someData(t, p)
		got, _ := run(f.Insns, d)
		if want := reference(p, native, d); got != want {
			t.Fatalf("%+v: filter says %#x, profile %#x", d, got, want)
		}
	}
}

// TestFarJumps: in filters near the largest possible, where little is within
// reach of a conditional jump, nothing goes astray.
func TestFarJumps(t *testing.T) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: someArches, ListenerPath: "/l"}
		for n := range 90 {
			s := specs.LinuxSyscall{Names: []string{callName(rnd.IntN(len(callEnds))), callName(rnd.IntN(len(callEnds))), "socket"}, Action: someActions[rnd.IntN(len(someActions)-1)]}
			for i := range rnd.IntN(4) * (n % 2) {
				s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(i) % 6, Op: someOps[rnd.IntN(len(someOps))], Value: rnd.Uint64() >> rnd.IntN(64), ValueTwo: rnd.Uint64()})
			}
			if len(s.Args) == 0 { // not for socket, which collects rules
				s.Names = s.Names[:2]
			}
			p.Syscalls = append(p.Syscalls, s)
		}
		f, err := compile(p, specs.ArchX86_64)
		require.NoError(t, err)
		require.NoError(t, verify(f.Insns))
		require.Greater(t, len(f.Insns), 1000)
		for range 500 {
			d := randomData(rnd, p)
			got, _ := run(f.Insns, d)
			require.Equal(t, reference(p, specs.ArchX86_64, d), got, "%+v", d)
		}
	}
}
