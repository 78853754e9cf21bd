package vmtest

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"vminit/internal/initramfs"
	"vminit/internal/microvm"
	"vminit/vsockstream"
)

const shellPort = 1027

// typist types into a debug shell and reads what it says.
type typist struct {
	vsockstream.Conn
	seen string
}

// expect reads until a pattern has come and returns its first group.
func (s *typist) expect(t *testing.T, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	buf := make([]byte, 4096)
	require.NoError(t, s.SetReadDeadline(time.Now().Add(time.Minute)))
	for {
		if m := re.FindStringSubmatchIndex(s.seen); m != nil {
			group := s.seen[m[2]:m[3]]
			s.seen = s.seen[m[1]:]
			return group
		}
		n, err := s.Read(buf)
		s.seen += string(buf[:n])
		require.NoError(t, err, "waiting for %q, seen %q", pattern, s.seen)
	}
}

func (s *typist) say(t *testing.T, line string) {
	t.Helper()
	_, err := io.WriteString(s, line)
	require.NoError(t, err)
}

// TestDebugShell is a host's look into a guest that was booted for it.
func TestDebugShell(t *testing.T) {
	Require(t)
	a, err := artifacts()
	require.NoError(t, err)
	image, err := os.Create(filepath.Join(t.TempDir(), "initrd"))
	require.NoError(t, err)
	c := initramfs.Usual(a.daemon, a.release)
	c.StripSignatures = true
	c.Add = []initramfs.File{{Src: "/bin/busybox", Dst: "/bin/sh"}}
	if c.KernelRelease != "" {
		c.RestModules = append(c.RestModules, "vsock_loopback")
	}
	_, err = initramfs.Build(image, c)
	require.NoError(t, err)
	require.NoError(t, image.Close())
	g := Boot(t, func(c *microvm.Config) {
		c.Initrd = image.Name()
		c.Flags = append(c.Flags, fmt.Sprintf("-debug-shell=%d", shellPort))
	})
	ctx := Context(t)
	dial := func() *typist {
		c, err := g.VM.Dial(ctx, shellPort)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return &typist{Conn: c}
	}

	// Nobody in the guest gets in, once it has a loopback.
	_, err = g.Run(ctx, Privileged("/bin/true")) // boot is over
	require.NoError(t, err)
	for _, cid := range []int{1, int(g.VM.Instance().CID)} {
		what := fmt.Sprintf("vsock:%d,%d", cid, shellPort)
		require.Contains(t, []string{"closed", "ECONNRESET", "EPIPE", "ENOTCONN"}, g.attempts(ctx, t, Spec(), what)[what], what)
	}

	// It is a shell beside PID 1, root, with a controlling terminal.
	s := dial()
	s.say(t, "read name < /proc/1/comm; [ -t 0 ] && : < /dev/tty && echo $name-$((40+2))-$(id -u)\r")
	require.Equal(t, "init-42-0", s.expect(t, `(\w+-42-\d+)`))
	s.say(t, "echo size $(stty size)\r")
	require.Equal(t, "24 80", s.expect(t, `size (\d+ \d+)`))
	s.say(t, "cat /proc/self/oom_score_adj | sed s/^/score:/\r")
	require.Equal(t, "0", s.expect(t, `score:(-?\d+)\r`))
	s.say(t, "ls -l /proc/self/fd | grep -c -e socket -e anon_inode -e memfd | sed s/^/daemon-fds:/\r")
	require.Equal(t, "0", s.expect(t, `daemon-fds:(\d+)`))
	// Ctrl-C ends what it runs and not the shell. The word comes from what has the
	// terminal: a Ctrl-C before that would be the shell's.
	s.say(t, "sh -c 'echo $((1+1))-begins; exec sleep 1000'; echo never\r")
	s.expect(t, `(2-begins)`)
	s.say(t, "\x03")
	s.say(t, "echo after-$((20+3))\r")
	s.expect(t, `(after-23)`)
	s.say(t, "exit 3\r")
	rest, err := io.ReadAll(s)
	require.NoError(t, err)
	require.NotContains(t, string(rest), "never")

	// Who hangs up ends the shell and what it runs in the foreground.
	s = dial()
	s.say(t, "echo pid-$$-; sleep 1000\r")
	pid := s.expect(t, `pid-(\d+)-`)
	require.NoError(t, s.Close())
	s = dial()
	s.say(t, fmt.Sprintf("while kill -0 %s || grep -q ^sleep /proc/[0-9]*/comm; do usleep 10000; done 2>/dev/null; echo gone-$((2+2))\r", pid))
	s.expect(t, `(gone-4)`)

	// A guest without a shell says so.
	s.say(t, "rm -f /bin/sh; echo removed-$((3+3))\r")
	s.expect(t, `(removed-6)`)
	require.NoError(t, s.Close())
	all, err := io.ReadAll(dial())
	require.NoError(t, err)
	require.Equal(t, "vminitd: debug shell: this guest has no shell: none of /bin/sh, /bin/bash, /bin/busybox\r\n", string(all))
}

// Without the flag nothing listens there.
func TestNoDebugShell(t *testing.T) {
	g := Shared(t)
	_, err := g.VM.Dial(Context(t), shellPort)
	require.Error(t, err)
}
