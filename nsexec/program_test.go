package nsexec

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
)

// TestControlFlow lets a child go through what programs are made of and looks
// at its registers at the gates.
func TestControlFlow(t *testing.T) {
	requireRoot(t)
	p, err := NewProgram()
	require.NoError(t, err)
	a, b := p.NewReg("a"), p.NewReg("b")
	null := devNull(t)
	for _, r := range p.SetupStdio() {
		p.Bind(r, int(null.Fd()))
	}
	fails := func(errno unix.Errno) Insn {
		return p.Call(unix.SYS_OPENAT, Int(unix.AT_FDCWD), p.Str("/nosuch/file"), Int(0), Int(0)).Ignore(errno)
	}
	count := func(r Reg, n int) { p.Load(r, p.Words(uint64(n))) }

	cell := p.Words(7)
	p.Load(a, cell)
	p.Poke(cell, Int(8))
	p.Load(b, cell)
	loaded := p.Gate("loaded")

	first := fails(unix.ENOENT)
	count(a, 100)
	second := fails(unix.ENOENT)
	p.Catch(func() { count(b, 1) }, first, second)
	caught := p.Gate("caught")

	ok := p.Call(unix.SYS_UMASK, Int(0)).Ignore(unix.EPERM)
	count(a, 2)
	p.Catch(func() { count(b, 2) }, ok)
	passed := p.Gate("passed")

	message := p.Buffer(8)
	p.FailUnlessEqual(unix.EIO, "the message is not what was expected", message, p.Words(1), p.Words(2))
	read := p.Gate("read")
	p.Finish(Finish{Process: plainProcess("true")})
	require.NoError(t, p.Err())

	c, err := launcher(t).Start(Launch{Program: p, Cgroup: -1, PIDNS: -1})
	require.NoError(t, err)
	gate := func(want GateID, ra, rb int) {
		regs, err := c.AwaitGate(soon())
		require.NoError(t, err)
		require.Equal(t, want, regs.Gate())
		require.Equal(t, []int{ra, rb}, []int{regs.Fd(a), regs.Fd(b)})
		if want == passed {
			require.NoError(t, p.Write(message, []byte{2, 0, 0, 0, 0, 0, 0, 0}))
		}
		require.NoError(t, c.Open())
	}
	gate(loaded, 7, 8)
	gate(caught, 7, 1)
	gate(passed, 2, 1)
	gate(read, 2, 1)
	require.NoError(t, c.AwaitExec(soon()))
	require.Zero(t, wait(t, c.Process).Code)
}

func TestWriteStaysInside(t *testing.T) {
	p, err := NewProgram()
	require.NoError(t, err)
	defer p.Close()
	at := p.Buffer(8)
	require.NoError(t, p.Write(at, make([]byte, 8)))
	require.Error(t, p.Write(at, make([]byte, arenaSize)))
	require.Error(t, p.Write(Arg{v: p.mem.addr(insnOff)}, make([]byte, 8)), "instructions")
	require.Error(t, p.Write(Int(4096), make([]byte, 8)))
	require.Error(t, p.Write(p.NewReg("r").Arg(), nil))
}

func TestPrintGatesAndCatches(t *testing.T) {
	p, err := NewProgram()
	require.NoError(t, err)
	defer p.Close()
	p.Step("work")
	in := p.Call(unix.SYS_CHDIR, p.Str("/a")).Ignore(unix.ENOENT)
	p.Call(unix.SYS_CHDIR, p.Str("/b"))
	p.Catch(func() { p.Gate("help") }, in)
	p.Call(unix.SYS_CHDIR, p.Str("/c"))
	require.Equal(t, `# work
chdir("/a") or ENOENT, which goes on at catch
chdir("/b")
catch:
  wait at gate help
chdir("/c")
`, p.String())
}

// TestCandidates: what is looked for in PATH does not take more room than the
// kernel would look at.
func TestCandidates(t *testing.T) {
	c, err := candidates("app", []string{"PATH=/a", "A=b", "PATH=/bin::/sbin/"})
	require.NoError(t, err)
	require.Equal(t, []string{"/bin/app", "./app", "/sbin//app"}, c)
	c, err = candidates(strings.Repeat("x", 1<<20), []string{"PATH=" + strings.Repeat(":", 1000)})
	require.NoError(t, err)
	require.Empty(t, c)
	_, err = candidates("app", []string{"PATH=" + strings.Repeat(":", 1<<20)})
	require.ErrorIs(t, err, sys.ErrInvalid)
	require.ErrorContains(t, err, "PATH in process.env has 1048577 directories")
}
