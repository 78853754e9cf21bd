package seccomp

import (
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestInKernel asks the kernel what it makes of every system call number, with
// arguments at the edges of the profile's, under our filter for containerd's
// default profile and under crun's, and compares: with each other, and each
// with our interpreter, on which the other comparisons rest.
//
// Calls that are allowed must not happen. So the filters are loaded with their
// actions rewritten: all of them return an errno that stands for the action.
// That goes for calls made at one place of a small program only; whatever it
// needs to start and to report is made elsewhere and allowed.
func TestInKernel(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("x86 only")
	}
	p := containerd(t)
	ours, err := compile(p, specs.ArchX86_64)
	require.NoError(t, err)
	for theirName, theirs := range map[string][]unix.SockFilter{
		"crun": readBPF(t, "testdata/libseccomp/containerd.bpf"),
		"runc": readBPF(t, "testdata/libseccomp/containerd-runc.bpf"),
	} {
		seen := map[string]int{}
		for _, abi := range []specs.Arch{specs.ArchX86_64, specs.ArchX32, specs.ArchX86} {
			a := knownArch(abi)
			calls := edgeCalls(p, a)
			for _, insns := range [][]unix.SockFilter{ours.Insns, theirs} {
				askKernel(t, a, insns, []data{{nr: a.bit | knock[abi], arch: a.audit}}) // is nothing made?
			}
			mine := askKernel(t, a, ours.Insns, calls)
			other := askKernel(t, a, theirs, calls)
			nameOf := map[uint32]string{}
			for _, e := range a.table {
				nameOf[a.number(e)] = callName(int(e.name))
			}
			for i := range calls {
				d := &calls[i]
				for _, f := range []struct {
					insns  []unix.SockFilter
					kernel uint32
				}{{ours.Insns, mine[i]}, {theirs, other[i]}} {
					verdict, _ := run(f.insns, d)
					require.Equal(t, verdict, f.kernel, "%s %s %+v: the kernel disagrees with the interpreter", abi, nameOf[d.nr], d)
				}
				if mine[i] != other[i] {
					seen[explain(t, p, d, nameOf[d.nr], mine[i], other[i])]++
				}
			}
			t.Logf("%s: %s: %d calls under each", theirName, abi, len(calls))
		}
		for name, n := range seen {
			t.Logf("%s: %s: %d", theirName, name, n)
		}
		require.Equal(t, []string{"calls newer than libseccomp 2.5.4", "newer calls fail with ENOSYS, as in runc"}, slices.Sorted(maps.Keys(seen)), theirName)
	}
}

// unfiltered are calls that newer kernels (6.14 for the first, 6.18 for both)
// never ask a filter about: they are for the kernel's own trampolines, and kill
// whoever makes them elsewhere.
var unfiltered = []string{"uretprobe", "uprobe"}

// edgeCalls are all calls to try of an architecture.
func edgeCalls(p *specs.LinuxSeccomp, a *arch) (calls []data) {
	nameOf := map[uint32]string{}
	for _, e := range a.table {
		nameOf[a.number(e)] = callName(int(e.name))
	}
	edges := edgeArgs(p)
	for _, nr := range edgeNumbers(a) {
		if a.bit == 0 && slices.Contains(unfiltered, nameOf[nr]) {
			continue
		}
		tries := edges
		if !conditional(p, nameOf[nr]) {
			tries = edges[:2]
		}
		for _, args := range tries {
			if a.audit == unix.AUDIT_ARCH_I386 { // its registers have 32 bits
				for i := range args {
					args[i] = uint64(uint32(args[i]))
				}
			}
			calls = append(calls, data{nr: nr, arch: a.audit, args: args})
		}
	}
	return calls
}

// knock is getpid: should it be made after all, nothing happens.
var knock = map[specs.Arch]uint32{specs.ArchX86_64: 39, specs.ArchX32: 39, specs.ArchX86: 20}

// codes stand for the actions without an errno of their own.
var codes = map[uint32]uint32{
	unix.SECCOMP_RET_ALLOW: 4000, unix.SECCOMP_RET_LOG: 4001, unix.SECCOMP_RET_TRACE: 4002, unix.SECCOMP_RET_USER_NOTIF: 4003,
	unix.SECCOMP_RET_TRAP: 4004, unix.SECCOMP_RET_KILL_THREAD: 4005, unix.SECCOMP_RET_KILL_PROCESS: 4006,
}

// harmless is a filter whose actions are errnos, for calls from ip; all others
// are allowed.
func harmless(t *testing.T, insns []unix.SockFilter, ip uint32) []unix.SockFilter {
	const load, jeq, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	all := []unix.SockFilter{ // struct seccomp_data: nr, arch, ip, args
		{Code: load, K: 8}, {Code: jeq, K: ip, Jt: 1}, {Code: ret, K: unix.SECCOMP_RET_ALLOW},
		{Code: load, K: 12}, {Code: jeq, K: 0, Jt: 1}, {Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	for _, in := range insns {
		if in.Code == ret {
			action, value := in.K&unix.SECCOMP_RET_ACTION_FULL, in.K&unix.SECCOMP_RET_DATA
			code, known := codes[action]
			switch {
			case action == unix.SECCOMP_RET_ERRNO:
				require.Less(t, value, uint32(4000))
			case known && value == 0:
				in.K = unix.SECCOMP_RET_ERRNO | code
			default:
				t.Fatalf("no errno for the action %#x", in.K)
			}
		}
		all = append(all, in)
	}
	return all
}

// askKernel makes the calls under a filter and returns its verdicts.
func askKernel(t *testing.T, a *arch, insns []unix.SockFilter, calls []data) []uint32 {
	dir := t.TempDir()
	prog, ip := caller(a, calls)
	path := filepath.Join(dir, "prog")
	require.NoError(t, os.WriteFile(path, prog, 0o755))
	if a.audit == unix.AUDIT_ARCH_I386 {
		try := filepath.Join(dir, "try")
		require.NoError(t, os.WriteFile(try, elf386(knock[specs.ArchX86], 0), 0o755))
		if err := exec.Command(try).Run(); errors.Is(err, unix.ENOEXEC) {
			t.Skip("this kernel runs no 32-bit programs")
		}
	}
	out, state := inChild(t, childTask{Insns: harmless(t, insns, ip), Exec: path, Output: filepath.Join(dir, "out")})
	require.True(t, state.Success(), "%v %q", state, out)
	table, err := os.ReadFile(filepath.Join(dir, "out"))
	require.NoError(t, err)
	width := 64
	if a.audit == unix.AUDIT_ARCH_I386 {
		width = 32
	}
	require.Len(t, table, width*len(calls))
	verdicts := make([]uint32, len(calls))
	for i := range calls {
		result := -int32(binary.LittleEndian.Uint32(table[width*i+width*7/8:]))
		require.Positive(t, result, "%+v was made", calls[i])
		verdicts[i] = unix.SECCOMP_RET_ERRNO | uint32(result)
		for action, code := range codes {
			if uint32(result) == code {
				verdicts[i] = action
			}
		}
	}
	return verdicts
}

// caller is a static program that makes calls one after the other, writes the
// table of them with results to stdout, and exits. ip is where it is when it
// makes one: behind that instruction.
func caller(a *arch, calls []data) (elf []byte, ip uint32) {
	le := binary.LittleEndian
	imm := func(code []byte, v int) []byte { return le.AppendUint32(code, uint32(v)) }
	const base = 0x10000
	headers, wide := 64+56, true
	if a.audit == unix.AUDIT_ARCH_I386 {
		headers, wide = 52+32, false
	}
	var table []byte
	for _, d := range calls {
		for _, v := range append([]uint64{uint64(d.nr)}, append(d.args[:], 0)...) {
			if wide {
				table = le.AppendUint64(table, v)
			} else {
				table = le.AppendUint32(table, uint32(v))
			}
		}
	}
	at := base + 1024 // of the table
	var code []byte
	if wide {
		code = imm([]byte{0xbb}, at)                // mov ebx, table
		code = imm(append(code, 0xbd), len(calls))  // mov ebp, count
		loop := len(code)                           //
		code = append(code, 0x48, 0x8b, 0x03)       // mov rax, [rbx]
		code = append(code, 0x48, 0x8b, 0x7b, 0x08) // mov rdi, [rbx+8]
		code = append(code, 0x48, 0x8b, 0x73, 0x10) // mov rsi, [rbx+16]
		code = append(code, 0x48, 0x8b, 0x53, 0x18) // mov rdx, [rbx+24]
		code = append(code, 0x4c, 0x8b, 0x53, 0x20) // mov r10, [rbx+32]
		code = append(code, 0x4c, 0x8b, 0x43, 0x28) // mov r8, [rbx+40]
		code = append(code, 0x4c, 0x8b, 0x4b, 0x30) // mov r9, [rbx+48]
		code = append(code, 0x0f, 0x05)             // syscall
		ip = uint32(base + headers + len(code))     //
		code = append(code, 0x48, 0x89, 0x43, 0x38) // mov [rbx+56], rax
		code = append(code, 0x48, 0x83, 0xc3, 0x40) // add rbx, 64
		code = append(code, 0xff, 0xcd)             // dec ebp
		code = append(code, 0x75, byte(loop-len(code)-2))
		code = imm(append(code, 0xb8), unix.SYS_WRITE)
		code = imm(append(code, 0xbf), 1) // mov edi
		code = imm(append(code, 0xbe), at)
		code = imm(append(code, 0xba), len(table))
		code = append(code, 0x0f, 0x05)
		code = imm(append(code, 0xb8), unix.SYS_EXIT_GROUP)
		code = append(code, 0x31, 0xff, 0x0f, 0x05) // xor edi, edi; syscall
	} else {
		code = imm([]byte{0xbc}, at)                        // mov esp, table
		loop := len(code)                                   //
		code = append(code, 0x8b, 0x04, 0x24)               // mov eax, [esp]
		code = append(code, 0x8b, 0x5c, 0x24, 0x04)         // mov ebx, [esp+4]
		code = append(code, 0x8b, 0x4c, 0x24, 0x08)         // mov ecx, [esp+8]
		code = append(code, 0x8b, 0x54, 0x24, 0x0c)         // mov edx, [esp+12]
		code = append(code, 0x8b, 0x74, 0x24, 0x10)         // mov esi, [esp+16]
		code = append(code, 0x8b, 0x7c, 0x24, 0x14)         // mov edi, [esp+20]
		code = append(code, 0x8b, 0x6c, 0x24, 0x18)         // mov ebp, [esp+24]
		code = append(code, 0xcd, 0x80)                     // int 0x80
		ip = uint32(base + headers + len(code))             //
		code = append(code, 0x89, 0x44, 0x24, 0x1c)         // mov [esp+28], eax
		code = append(code, 0x83, 0xc4, 0x20)               // add esp, 32
		code = imm(append(code, 0x81, 0xfc), at+len(table)) // cmp esp, end
		code = append(code, 0x75, byte(loop-len(code)-2))   // jne loop
		code = imm(append(code, 0xb8), 4)                   // write
		code = imm(append(code, 0xbb), 1)
		code = imm(append(code, 0xb9), at)
		code = imm(append(code, 0xba), len(table))
		code = append(code, 0xcd, 0x80)
		code = imm(append(code, 0xb8), 1)           // exit
		code = append(code, 0x31, 0xdb, 0xcd, 0x80) // xor ebx, ebx; int 0x80
	}
	code = append(code, make([]byte, at-base-headers-len(code))...)
	size := headers + len(code) + len(table)
	return slices.Concat(elfHeader(wide, base, headers, size), code, table), ip
}

// elfHeader describes a program of one segment that may be read, written and
// executed, and starts behind the headers.
func elfHeader(wide bool, base, headers, size int) (b []byte) {
	put := func(fields ...any) {
		for _, f := range fields {
			b, _ = binary.Append(b, binary.LittleEndian, f)
		}
	}
	entry := base + headers
	if wide {
		b = append(b, "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
		put(uint16(2), uint16(62), uint32(1), uint64(entry), uint64(64), uint64(0), uint32(0)) // type, machine, version, entry, phoff, shoff, flags
		put(uint16(64), uint16(56), uint16(1), uint16(64), uint16(0), uint16(0))               // ehsize, phentsize, phnum, shentsize, shnum, shstrndx
		put(uint32(1), uint32(7), uint64(0), uint64(base), uint64(base), uint64(size), uint64(size), uint64(0x1000))
		return b
	}
	b = append(b, "\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	put(uint16(2), uint16(3), uint32(1), uint32(entry), uint32(52), uint32(0), uint32(0))
	put(uint16(52), uint16(32), uint16(1), uint16(40), uint16(0), uint16(0))
	put(uint32(1), uint32(0), uint32(base), uint32(base), uint32(size), uint32(size), uint32(7), uint32(0x1000))
	return b
}
