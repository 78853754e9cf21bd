package vmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
)

// CVE-2016-9962: a container goes after the processes that are put into it
// while they still have what the daemon has. One that may trace gets at them
// shortly before they execute its own program, and by then they have no more
// than the container (tasksvc/tracers.go). Without late births it gains all
// capabilities: "gained":["1ffffffffff of /init"].
func TestThreatTracedExec(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		canary := g.Canary(ctx, t)
		for _, tc := range []struct {
			name string
			mode []string
			edit func(*specs.Spec)
		}{
			{"no rights", nil, func(*specs.Spec) {}},
			{"files", []string{"-files"}, func(*specs.Spec) {}},
			{"user namespace", nil, func(s *specs.Spec) { addUserNS(s); capable(s.Process, "CAP_SYS_PTRACE") }},
			{"may trace", nil, func(s *specs.Spec) { capable(s.Process, "CAP_SYS_PTRACE") }},
			{"may trace, files", []string{"-files"}, func(s *specs.Spec) { capable(s.Process, "CAP_SYS_PTRACE") }},
		} {
			spec := Spec(append([]string{"/bin/probe", "stalk"}, tc.mode...)...)
			tc.edit(spec)
			p, out := g.ready(ctx, t, spec, "stalking\n")
			for range 8 { // the stalker may have one stumble, which is its own loss
				_ = g.rawExec(ctx, p.ID(), string(marshal(t, Spec("/bin/probe", "sleep", "50ms").Process)))
			}
			require.NoError(t, p.Kill(ctx, syscall.SIGTERM))
			text, err := io.ReadAll(out)
			require.NoError(t, err)
			r, err := p.Finish(ctx)
			require.NoError(t, err)
			var s struct {
				Seen, Denied, Caught, Narrowed int
				Gained, Leaked, Files          []string
			}
			require.NoError(t, json.Unmarshal(text, &s), "%s: %s%+v", tc.name, text, r)
			t.Logf("%s: %s", tc.name, text)
			require.NotZero(t, s.Seen, "%s: nothing was there to be attacked", tc.name)
			require.Empty(t, s.Gained, tc.name)
			require.NotContains(t, s.Leaked, "exe of /init", "%s: open for writing", tc.name)
			for _, file := range s.Files { // its stdio, the container's init, the socket of the launch, what a Go program reads as it starts
				require.Regexp(t, `^(pipe:|socket:|anon_inode:\[pidfd\]$|/dev/null$|/sys/kernel/mm/transparent_hugepage/hpage_pmd_size$)`, file, tc.name)
			}
			if !strings.HasPrefix(tc.name, "may") {
				require.Zero(t, s.Caught, tc.name)
				require.Empty(t, s.Leaked, tc.name)
			}
			g.Alive(ctx, t, canary)
		}
	})
}

// A container stops whatever is put into it. The exec waits, for a minute at
// most, and nobody else does.
func TestThreatStoppedExec(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		p, _ := g.ready(ctx, t, Spec("/bin/probe", "stalk", "-stop"), "stalking\n")
		failed := make(chan error, 1)
		go func() {
			for {
				if err := g.rawExec(ctx, p.ID(), `{"cwd":"/","args":["/bin/true"],"env":["HOME=/"]}`); err != nil {
					failed <- err
					return
				}
			}
		}()
		for range 3 { // others are not held up
			_, err := g.Run(ctx, Spec("/bin/true"))
			require.NoError(t, err)
		}
		g.end(t, p)
		select {
		case err := <-failed:
			require.Error(t, err)
		case <-time.After(20 * time.Second):
			t.Error("the exec of a container that is gone has not ended")
		}
	})
}

// CVE-2024-21626 for execs: no descriptor of the daemon's is a way out.
func TestThreatExecDirectory(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		spec := Spec("/bin/probe", "sleep")
		c := g.Running(ctx, t, spec)
		for _, format := range []string{"/proc/self/fd/%d", "/proc/thread-self/fd/%d/.", "/dev/fd/%d"} {
			for fd := range 12 {
				proc := Spec("/bin/sh", "-c", "ls -a . .. ../../../../..").Process
				proc.Cwd = fmt.Sprintf(format, fd)
				if r, err := g.execs(ctx, t, c.ID(), proc); err == nil {
					require.NotContains(t, r.Stdout, "init", proc.Cwd)
				} else {
					require.ErrorContains(t, err, proc.Cwd)
				}
			}
		}
		g.end(t, c)
	})
}

// A terminal is the container's: what is pushed into it comes out of it, and the
// guest's console is another.
func TestThreatTerminal(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		spec := Spec("/bin/probe", "try", "tiocsti", "tioclinux", "tioccons", "open:/dev/console", "open-tty")
		spec.Process.Terminal = true
		r, err := g.Run(ctx, spec)
		require.NoError(t, err)
		var went map[string]string
		require.NoError(t, json.Unmarshal([]byte(strings.TrimPrefix(r.Stdout, "^D")), &went), r.Stdout)
		require.Equal(t, "ENOTTY", went["tioclinux"], "no virtual console")
		require.Equal(t, "EPERM", went["tioccons"], "the kernel's messages stay where they are")
		require.Equal(t, "ok", went["open:/dev/console"], "it is the pty")
		require.Contains(t, []string{"ok", "EIO"}, went["tiocsti"], "into its own terminal, if the kernel lets it at all")
	})
}

// CVE-2025-52565 for execs: /dev of a running container is what the container
// has made of it.
func TestThreatExecTerminal(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		for name, script := range map[string]string{
			"link":       "umount /dev/pts; rmdir /dev/pts; ln -s /tmp /dev/pts",
			"link out":   "umount /dev/pts; rmdir /dev/pts; ln -s /proc/1/root/dev/pts /dev/pts",
			"fifo":       "umount /dev/pts; mkfifo /dev/pts/ptmx; chmod 666 /dev/pts/ptmx",
			"covered":    "mount -t tmpfs x /dev/pts; mkfifo /dev/pts/ptmx",
			"other node": "mount --bind /dev/null /dev/pts/ptmx",
			"gone":       "umount /dev/pts; rmdir /dev/pts",
		} {
			spec := Spec("/bin/sh", "-c", script+"; echo ready; exec sleep 1000")
			capable(spec.Process, "CAP_SYS_ADMIN")
			p, _ := g.ready(ctx, t, spec, "ready\n")
			proc := Spec("/bin/true").Process
			proc.Terminal = true
			began := time.Now()
			_, err := g.execs(ctx, t, p.ID(), proc)
			require.ErrorContains(t, err, "allocate a terminal", name)
			require.Less(t, time.Since(began), 10*time.Second, name)
			g.end(t, p)
		}
	})
}

// containerd CVE-2026-47262 for execs: HOME is looked up in what the container
// has made of its /etc/passwd.
func TestThreatPasswd(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		for script, want := range map[string]string{
			"rm /etc/passwd; mkfifo /etc/passwd":                                   "not a regular file",
			"rm /etc/passwd; mknod /etc/passwd c 1 5":                              "not a regular file",
			"rm /etc/passwd; mkdir /etc/passwd":                                    "not a regular file",
			"truncate -s 100M /etc/passwd":                                         "more than the 1048576 allowed",
			"rm /etc/passwd; ln -s /proc/self/environ /etc/passwd":                 "HOME=/\n",
			"rm /etc/passwd; ln -s /proc/1/mem /etc/passwd":                        "HOME=/\n",
			"rm /etc/passwd; ln -s passwd /etc/passwd":                             "HOME=/\n",
			"rm -r /etc; ln -s /proc/1/root/etc /etc":                              "HOME=/\n",
			"rm /etc/passwd; ln -s /sys/kernel/profiling /etc/passwd":              "HOME=/\n",
			"mount -t tmpfs x /etc; echo root:x:0:0:root:/mounted:/ > /etc/passwd": "HOME=/mounted\n",
			"mount -t proc x /etc; true":                                           "HOME=/\n",
		} {
			spec := Spec("/bin/sh", "-c", script+"; echo ready; exec sleep 1000")
			capable(spec.Process, "CAP_SYS_ADMIN")
			p, _ := g.ready(ctx, t, spec, "ready\n")
			proc := Spec("/bin/sh", "-c", "echo HOME=$HOME").Process
			proc.Env = []string{"PATH=/bin"}
			if strings.HasPrefix(want, "HOME") {
				r, err := g.execs(ctx, t, p.ID(), proc)
				require.NoError(t, err, script)
				require.Equal(t, want, r.Stdout, script)
			} else {
				require.ErrorContains(t, g.rawExec(ctx, p.ID(), string(marshal(t, proc))), want, script)
			}
			g.end(t, p)
		}
	})
}

// What is on the way to a program: PATH as an attacker writes it.
func TestThreatPath(t *testing.T) {
	unharmed(t, func(ctx context.Context, g *Guest) {
		spec := Spec("/bin/sh", "-c", "mkdir -p /tmp/d/true /tmp/f; mkfifo /tmp/f/true; chmod 755 /tmp/f/true; ln -s loop /tmp/loop; echo ready; exec sleep 1000")
		p, _ := g.ready(ctx, t, spec, "ready\n")
		exec := func(path string) error {
			proc := Spec("true").Process
			proc.Env = []string{"HOME=/", "PATH=" + path}
			return g.rawExec(ctx, p.ID(), string(marshal(t, proc)))
		}
		require.NoError(t, exec("/tmp/d:/tmp/f:/nosuch:/etc/passwd::/bin"))
		for _, path := range []string{"/tmp/d", "/tmp/f", "", ":", "/proc/self/fd", "/tmp/loop", "/etc/passwd", strings.Repeat("x", 5000)} {
			require.Error(t, exec(path), path)
		}
		require.ErrorContains(t, exec(strings.Repeat("/nosuch:", 20000)), "PATH in process.env has 20001 directories")
		g.end(t, p)
	})
}
