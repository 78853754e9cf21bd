package seccomp

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The tests below load filters for real, in a child: this test binary once
// more, which finds in its environment what to do.
const childEnv = "SECCOMP_TEST_CHILD"

type childTask struct {
	Profile *specs.LinuxSeccomp
	Insns   []unix.SockFilter // loaded as they are, in place of a profile
	Calls   []childCall       // made one after the other, result by result on stdout
	Exec    string            // then this program is run
	Output  string            // with this file as stdout
	Answer  int64             // what a listener answers
}

type childCall struct {
	Nr   uintptr
	Args [3]uintptr
}

func TestMain(m *testing.M) {
	if s := os.Getenv(childEnv); s != "" {
		if err := child(s); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(120)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(text string) error {
	var task childTask
	if err := json.Unmarshal([]byte(text), &task); err != nil {
		return err
	}
	f := &Filter{Insns: task.Insns}
	if task.Insns == nil {
		var err error
		if f, err = Compile(task.Profile); err != nil {
			return err
		}
	}
	if task.Output != "" {
		out, err := os.Create(task.Output)
		if err != nil {
			return err
		}
		if err := unix.Dup3(int(out.Fd()), 1, 0); err != nil {
			return err
		}
	}
	runtime.LockOSThread() // the filter is this thread's
	fd, err := load(f)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	for _, c := range task.Calls {
		if f.Notify {
			go answer(fd, task.Answer)
		}
		r, _, errno := unix.RawSyscall(c.Nr, c.Args[0], c.Args[1], c.Args[2])
		if errno != 0 {
			fmt.Println(errno.Error())
		} else {
			fmt.Println("ok", int(r))
		}
	}
	if task.Exec != "" {
		return unix.Exec(task.Exec, []string{task.Exec}, nil)
	}
	return nil
}

func inChild(t testing.TB, task childTask) (lines []string, state *os.ProcessState) {
	text, err := json.Marshal(task)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	var errText strings.Builder
	cmd.Stderr = &errText
	out, err := cmd.Output()
	if ee := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ee) {
		t.Fatal(err)
	}
	if strings.Contains(errText.String(), "load: function not implemented") {
		t.Skip("this kernel has no seccomp filters")
	}
	require.NotEqual(t, 120, cmd.ProcessState.ExitCode(), errText.String())
	return strings.Split(strings.TrimSpace(string(out)), "\n"), cmd.ProcessState
}

const badFD = ^uintptr(0)

func TestLoad(t *testing.T) {
	call := func(nr uintptr, args ...uintptr) childCall {
		c := childCall{Nr: nr}
		copy(c.Args[:], args)
		return c
	}
	lines, state := inChild(t, childTask{Profile: containerd(t), Calls: []childCall{
		call(unix.SYS_DUP, badFD),
		call(unix.SYS_PERSONALITY, 0xffffffff),
		call(unix.SYS_PERSONALITY, 9),
		call(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0),
		call(unix.SYS_SOCKET, unix.AF_UNSPEC, unix.SOCK_STREAM, 0),
		call(unix.SYS_CLONE3, 0, 0),
		call(unix.SYS_REBOOT, 0),
		call(468, badFD), // file_getattr: newer than the profile
	}})
	require.True(t, state.Success(), "%v", state)
	require.Equal(t, []string{"bad file descriptor", "ok 0", "operation not permitted", "operation not permitted",
		"address family not supported by protocol", "function not implemented", "operation not permitted", "function not implemented"}, lines)
}

// TestLoadActions: every action does what its name says.
func TestLoadActions(t *testing.T) {
	errno := uint(unix.ENOTTY)
	for _, c := range []struct {
		action specs.LinuxSeccompAction
		errno  *uint
		line   string
		signal syscall.Signal
	}{
		{specs.ActAllow, nil, "bad file descriptor", 0},
		{specs.ActLog, nil, "bad file descriptor", 0},
		{specs.ActErrno, &errno, "inappropriate ioctl for device", 0},
		{specs.ActTrace, nil, "function not implemented", 0}, // nobody traces
		{specs.ActNotify, nil, "ok 77", 0},
		{specs.ActKillProcess, nil, "", unix.SIGSYS},
		{specs.ActTrap, nil, "", -1}, // SIGSYS, on which Go's runtime panics
	} {
		t.Run(string(c.action), func(t *testing.T) {
			p := &specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess, ListenerPath: "/l", Syscalls: []specs.LinuxSyscall{
				{Names: []string{"dup"}, Action: c.action, ErrnoRet: c.errno, Args: []specs.LinuxSeccompArg{arg(1, specs.OpEqualTo, 0x77)}},
			}}
			for i := range callEnds {
				if callName(i) != "dup" {
					p.Syscalls = append(p.Syscalls, on(specs.ActAllow, callName(i)))
				}
			}
			lines, state := inChild(t, childTask{Profile: p, Answer: 77, Calls: []childCall{{Nr: unix.SYS_DUP, Args: [3]uintptr{badFD, 0x77}}}})
			require.Equal(t, []string{c.line}, lines)
			ws := state.Sys().(syscall.WaitStatus)
			switch {
			case c.signal > 0:
				require.True(t, ws.Signaled() && ws.Signal() == c.signal, "%v", state)
			case c.signal < 0:
				require.Equal(t, 2, ws.ExitStatus(), "%v", state)
			default:
				require.True(t, state.Success(), "%v", state)
			}
		})
	}
}

// TestLoadX32: x32's calls are recognised on x86_64, whether the kernel
// implements them or not.
func TestLoadX32(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("x86 only")
	}
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX32}, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"ioctl"}, Action: specs.ActErrno, ErrnoRet: new(uint)},
	}}
	*p.Syscalls[0].ErrnoRet = uint(unix.EXDEV)
	for i := range callEnds {
		if callName(i) != "ioctl" && callName(i) != "reboot" {
			p.Syscalls = append(p.Syscalls, on(specs.ActAllow, callName(i)))
		}
	}
	lines, state := inChild(t, childTask{Profile: p, Calls: []childCall{
		{Nr: x32Bit | 514}, {Nr: x32Bit | 169}, {Nr: 16}, // x32 ioctl, x32 reboot, ioctl
	}})
	require.True(t, state.Success())
	require.Equal(t, []string{"invalid cross-device link", "operation not permitted", "invalid cross-device link"}, lines)
}

// TestLoadX86 runs a 32-bit program whose exit status is the errno it got.
func TestLoadX86(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("x86 only")
	}
	listed := containerd(t)
	unlisted := containerd(t)
	unlisted.Architectures = nil
	for _, c := range []struct {
		name    string
		profile *specs.LinuxSeccomp
		nr, arg uint32
		status  int // -1: killed
	}{
		{"allowed", listed, 41, 0xffffffff, int(unix.EBADF)},                  // dup
		{"refused", listed, 283, 0, int(unix.EPERM)},                          // kexec_load
		{"condition holds", listed, 136, 8, 0},                                // personality
		{"condition fails", listed, 136, 9, int(unix.EPERM)},                  // personality
		{"newer than the profile", listed, 468, 0xffffffff, int(unix.ENOSYS)}, // file_getattr
		{"architecture not listed", unlisted, 41, 0xffffffff, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			prog := filepath.Join(t.TempDir(), "prog")
			require.NoError(t, os.WriteFile(prog, elf386(c.nr, c.arg), 0o755))
			if err := exec.Command(prog).Run(); errors.Is(err, unix.ENOEXEC) {
				t.Skip("this kernel runs no 32-bit programs")
			}
			_, state := inChild(t, childTask{Profile: c.profile, Exec: prog})
			require.Equal(t, c.status, state.ExitCode(), "%v", state)
			if c.status < 0 {
				require.Equal(t, unix.SIGSYS, state.Sys().(syscall.WaitStatus).Signal())
			}
		})
	}
}

// elf386 is a static 32-bit program: it makes one system call and exits with
// the negated result.
func elf386(nr, arg uint32) []byte {
	le := binary.LittleEndian
	code := le.AppendUint32([]byte{0xb8}, nr)               // mov eax, nr
	code = le.AppendUint32(append(code, 0xbb), arg)         // mov ebx, arg
	code = append(code, 0x31, 0xc9, 0x31, 0xd2, 0xcd, 0x80) // xor ecx, ecx; xor edx, edx; int 0x80
	code = append(code, 0xf7, 0xd8, 0x89, 0xc3)             // neg eax; mov ebx, eax
	code = append(code, 0xb8, 1, 0, 0, 0, 0xcd, 0x80)       // mov eax, exit; int 0x80
	const base, headers = 0x10000, 52 + 32
	var b []byte
	b = append(b, "\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	for _, h := range []any{
		uint16(2), uint16(3), uint32(1), uint32(base + headers), uint32(52), uint32(0), uint32(0), // type, machine, version, entry, phoff, shoff, flags
		uint16(52), uint16(32), uint16(1), uint16(40), uint16(0), uint16(0), // ehsize, phentsize, phnum, shentsize, shnum, shstrndx
		uint32(1), uint32(0), uint32(base), uint32(base), uint32(headers + len(code)), uint32(headers + len(code)), uint32(5), uint32(0x1000), // PT_LOAD, r-x
	} {
		b, _ = binary.Append(b, le, h)
	}
	return append(b, code...)
}

// TestLoadLargest: a program near the kernel's limit is accepted.
func TestLoadLargest(t *testing.T) {
	s := on(specs.ActErrno, "dup")
	for i := range uint64(680) {
		s.Args = append(s.Args, arg(1, specs.OpEqualTo, i<<33|i<<1))
	}
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{s}}
	f, err := Compile(p)
	require.NoError(t, err)
	require.Greater(t, len(f.Insns), 1500)
	call := func(v uint64) childCall { return childCall{Nr: unix.SYS_DUP, Args: [3]uintptr{badFD, uintptr(v)}} }
	lines, state := inChild(t, childTask{Profile: p, Calls: []childCall{call(0), call(679<<33 | 679<<1), call(679<<33 | 678<<1), call(5)}})
	require.True(t, state.Success(), "%v", state)
	require.Equal(t, []string{"operation not permitted", "operation not permitted", "bad file descriptor", "bad file descriptor"}, lines)
	t.Logf("%d instructions", len(f.Insns))
}
