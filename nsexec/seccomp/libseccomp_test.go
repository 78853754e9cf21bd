package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// notInLibseccomp are the calls that libseccomp 2.5.4 does not know.
var notInLibseccomp = strings.Fields(`uretprobe uprobe cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue
	statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat listxattrat removexattrat
	open_tree_attr file_getattr file_setattr listns rseq_slice_yield`)

// differences are all the ways in which our filters and libseccomp 2.5.4's
// disagree; docs/seccomp.md explains each.
var differences = []struct {
	name  string
	holds func(p *specs.LinuxSeccomp, d *data, call string, ours, theirs uint32) bool
}{
	{"newer calls fail with ENOSYS, as in runc", func(p *specs.LinuxSeccomp, d *data, call string, ours, theirs uint32) bool {
		return ours == nosys && theirs == refAction(p.DefaultAction, p.DefaultErrnoRet) && !named(p, call)
	}},
	{"calls newer than libseccomp 2.5.4", func(p *specs.LinuxSeccomp, d *data, call string, ours, theirs uint32) bool {
		return (theirs == refAction(p.DefaultAction, p.DefaultErrnoRet) || theirs == nosys) && named(p, call) && strings.Contains(" "+strings.Join(notInLibseccomp, " ")+" ", " "+call+" ")
	}},
	{"conditions are not dropped for socketcall", func(p *specs.LinuxSeccomp, d *data, call string, ours, theirs uint32) bool {
		return call == "socketcall" && d.arch == unix.AUDIT_ARCH_I386 && rank(ours) > rank(theirs)
	}},
	{"the upper half of ipc's first argument is a version", func(p *specs.LinuxSeccomp, d *data, call string, ours, theirs uint32) bool {
		return call == "ipc" && d.arch == unix.AUDIT_ARCH_I386 && uint32(d.args[0])>>16 != 0
	}},
	{"rules that contradict each other apply in the profile's order", func(p *specs.LinuxSeccomp, d *data, call string, ours, theirs uint32) bool {
		actions := map[specs.LinuxSeccompAction]bool{}
		for _, s := range p.Syscalls {
			actions[s.Action] = actions[s.Action] || slices.Contains(s.Names, call)
		}
		return actions[specs.ActAllow] && actions[specs.ActTrap] && reference(p, specs.ArchX86_64, d) == ours
	}},
}

// TestAgainstLibseccomp compares, for every number of every architecture and
// arguments at the edges of the profile's, with filters that libseccomp made
// (gen/libseccomp.go).
func TestAgainstLibseccomp(t *testing.T) {
	profiles, err := filepath.Glob("testdata/libseccomp/*.json")
	require.NoError(t, err)
	require.NotEmpty(t, profiles)
	for _, path := range profiles {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".json"), func(t *testing.T) {
			var p specs.LinuxSeccomp
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(text, &p))
			ours, err := compile(&p, specs.ArchX86_64)
			require.NoError(t, err)
			theirs := readBPF(t, strings.TrimSuffix(path, ".json")+".bpf")
			require.NoError(t, verify(theirs))
			compare(t, &p, ours.Insns, theirs)
			t.Logf("%d instructions, libseccomp %d", len(ours.Insns), len(theirs))
		})
	}
}

// TestAgainstRunc compares with the filter runc 1.1.5 loaded for containerd's
// default profile, read back with PTRACE_SECCOMP_GET_FILTER. (crun 1.8.1's is
// libseccomp's, byte for byte.)
func TestAgainstRunc(t *testing.T) {
	p := containerd(t)
	ours, err := compile(p, specs.ArchX86_64)
	require.NoError(t, err)
	seen := compare(t, p, ours.Insns, readBPF(t, "testdata/libseccomp/containerd-runc.bpf"))
	require.Equal(t, []string{
		"calls newer than libseccomp 2.5.4",
		"newer calls fail with ENOSYS, as in runc", // and those of x32 below 512, which runc takes for old
	}, seen)
}

func readBPF(t testing.TB, path string) []unix.SockFilter {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	insns := make([]unix.SockFilter, len(b)/8)
	_, err = binary.Decode(b, binary.LittleEndian, insns)
	require.NoError(t, err)
	return insns
}

// compare returns the names of the differences seen.
func compare(t *testing.T, p *specs.LinuxSeccomp, ours, theirs []unix.SockFilter) []string {
	var calls, ourSteps, theirSteps int
	seen := map[string]int{}
	edges := edgeArgs(p)
	for _, abi := range append(someArches, specs.ArchMIPS) {
		a := knownArch(abi)
		if a == nil {
			a = &arch{audit: unix.AUDIT_ARCH_MIPS}
		}
		nameOf := map[uint32]string{}
		for _, e := range a.table {
			nameOf[a.number(e)] = callName(int(e.name))
		}
		for _, nr := range edgeNumbers(a) {
			tries := edges
			if !conditional(p, nameOf[nr]) {
				tries = edges[:2]
			}
			for _, args := range tries {
				d := &data{nr: nr, arch: a.audit, args: args}
				got, n := run(ours, d)
				want, m := run(theirs, d)
				calls, ourSteps, theirSteps = calls+1, ourSteps+n, theirSteps+m
				if got != want {
					seen[explain(t, p, d, nameOf[nr], got, want)]++
				}
			}
		}
	}
	for name, n := range seen {
		t.Logf("%s: %d of %d", name, n, calls)
	}
	t.Logf("instructions run per call: %.1f, libseccomp %.1f", float64(ourSteps)/float64(calls), float64(theirSteps)/float64(calls))
	return slices.Sorted(maps.Keys(seen))
}

func explain(t *testing.T, p *specs.LinuxSeccomp, d *data, call string, ours, theirs uint32) string {
	for _, x := range differences {
		if x.holds(p, d, call, ours, theirs) {
			return x.name
		}
	}
	t.Fatalf("%s %+v: ours %#x, libseccomp %#x", call, d, ours, theirs)
	return ""
}

// conditional tells whether the profile looks at a call's arguments.
func conditional(p *specs.LinuxSeccomp, call string) bool {
	return call == "socketcall" || call == "ipc" || slices.ContainsFunc(p.Syscalls, func(s specs.LinuxSyscall) bool {
		return len(s.Args) > 0 && slices.Contains(s.Names, call)
	})
}

// edgeNumbers are all an architecture has, and what lies around them.
func edgeNumbers(a *arch) []uint32 {
	numbers := []uint32{0xf0000, 0xf0001, 0xf0002, 0xf0005, 0xf0006, 0xf0007, 1<<30 - 1, 1 << 31, 0xfffffffe, 0xffffffff}
	for nr := range uint32(600) {
		numbers = append(numbers, nr|a.bit)
	}
	return numbers
}

// edgeArgs are the values a profile compares with and their neighbours: in each
// argument alone, and in all at once.
func edgeArgs(p *specs.LinuxSeccomp) [][6]uint64 {
	values := map[uint64]bool{}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo & a.Value} {
				for _, w := range []uint64{v, v - 1, v + 1, v ^ 1<<32, v ^ 1<<63, v << 32, ^v, v | 1<<16} {
					values[w] = true
				}
			}
		}
	}
	sets := [][6]uint64{{}, {^uint64(0), ^uint64(0), 1 << 40, 5, 6, 7}}
	for n := range uint64(26) { // what socketcall and ipc stand for
		sets = append(sets, [6]uint64{n, n, n, n, n, n})
	}
	for v := range values {
		sets = append(sets, [6]uint64{v, v, v, v, v, v})
		for i := range 6 {
			var args [6]uint64
			args[i] = v
			sets = append(sets, args)
		}
	}
	return sets
}
