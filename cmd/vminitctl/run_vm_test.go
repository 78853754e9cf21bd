package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/microvm"
)

// TestRunOwnVM boots a VM for each container, as people do who just type run.
func TestRunOwnVM(t *testing.T) {
	b := requireVM(t)
	share := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(share, "file"), []byte("shared\n"), 0o644))

	t.Run("output and status", func(t *testing.T) {
		r := vminitctl(t, "", "run", "--json", "--timeline", "--vminitd", b.daemon, "--rootfs", b.root, "--mount", share+":/share:ro", "--",
			"sh", "-c", "echo out; echo err >&2; cat /share/file; touch /share/x || echo read-only; touch /new && exit 7")
		require.Equal(t, 7, r.code, r.stderr)
		require.Equal(t, "out\nshared\nread-only\n", r.stdout)
		require.Contains(t, r.stderr, "err\n")
		i := strings.Index(r.stderr, "[{")
		require.GreaterOrEqual(t, i, 0, r.stderr)
		var rows []struct{ Where, Name string }
		require.NoError(t, json.Unmarshal([]byte(r.stderr[i:]), &rows))
		names := map[string]bool{}
		for _, row := range rows {
			names[row.Where+" "+row.Name] = true
		}
		for _, want := range []string{"host guest image", "host start QEMU", "guest boot/kernel", "host guest serves", "host create", "host start", "host run", "host power off", "host QEMU ended"} {
			require.True(t, names[want], want)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		r := vminitctl(t, "", "run", "--name", "c1", "--vminitd", b.daemon, "--rootfs", b.root, "--", "nosuch")
		require.Equal(t, 127, r.code)
		require.Equal(t, "vminitctl: start c1: exec \"nosuch\": executable file not found in $PATH\n", r.stderr)
	})
	t.Run("kernel that crashes", func(t *testing.T) {
		initrd := filepath.Join(t.TempDir(), "initrd")
		require.NoError(t, os.WriteFile(initrd, []byte("no archive"), 0o600))
		r := vminitctl(t, "", "run", "--initrd", initrd, "--rootfs", b.root, "--", "true")
		require.Equal(t, 125, r.code)
		require.Contains(t, r.stderr, "Unable to mount root fs")
	})
	requireNothingLeft(t)
}

// requireNothingLeft checks that no VM, and no image of one, is left.
func requireNothingLeft(t *testing.T) {
	t.Helper()
	all, err := os.ReadDir(filepath.Join(scratch(), "vminit", "vms"))
	require.NoError(t, err)
	require.Empty(t, all)
	cached, err := os.ReadDir(filepath.Join(scratch(), "cache", "vminit"))
	require.NoError(t, err)
	for _, e := range cached {
		require.NotContains(t, e.Name(), ".tmp-")
	}
}

// TestRunInVM runs containers in one VM that stays.
func TestRunInVM(t *testing.T) {
	b := requireVM(t)
	r := vminitctl(t, "", "vm", "boot", "--name", "stay", "--debug-shell", "--vminitd", b.daemon, "--json")
	require.Zero(t, r.code, r.stderr)
	var meta microvm.Meta
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &meta))
	defer func() {
		require.Equal(t, result{}, vminitctl(t, "", "vm", "stop", "stay"))
		requireNothingLeft(t)
	}()
	run := func(t *testing.T, stdin string, args ...string) result {
		return vminitctl(t, stdin, append([]string{"run", "--vm", "stay", "--rootfs", b.root}, args...)...)
	}

	t.Run("list and info", func(t *testing.T) {
		require.Contains(t, vminitctl(t, "", "vm", "list").stdout, "stay")
		for _, address := range []string{"vm://stay", meta.RPCAddress} {
			r := vminitctl(t, "", "--address", address, "info")
			require.Zero(t, r.code, r.stderr)
			require.Contains(t, r.stdout, "kernel   6.")
		}
		require.Contains(t, vminitctl(t, "", "vm", "timeline").stdout, "boot/kernel")
		drawing := filepath.Join(t.TempDir(), "t.svg")
		require.Zero(t, vminitctl(t, "", "vm", "timeline", "--svg", drawing).code)
		require.FileExists(t, drawing)
		r := vminitctl(t, "", "vm", "boot", "--name", "stay", "--vminitd", b.daemon)
		require.Equal(t, 1, r.code)
		require.Contains(t, r.stderr, "a VM named stay runs already")
	})
	t.Run("debug shell", func(t *testing.T) { // vmtest has one with a shell in the image
		r := vminitctl(t, "", "vm", "shell", "stay")
		require.Zero(t, r.code, r.stderr)
		require.Contains(t, r.stdout, "this guest has no shell")
		r = vminitctl(t, "", "vm", "shell", "stay", "--port", "1028")
		require.Equal(t, 1, r.code)
		require.Contains(t, r.stderr, "was the VM booted with --debug-shell?")
	})
	t.Run("status", func(t *testing.T) {
		require.Equal(t, result{}, run(t, "", "--", "true"))
		require.Equal(t, 3, run(t, "", "--", "sh", "-c", "exit 3").code)
		require.Equal(t, 128+9, run(t, "", "--", "sh", "-c", "sh -c 'kill -9 $$'; exit $?").code)
		require.Equal(t, 127, run(t, "", "--", "/no/such").code)
		require.Equal(t, 126, run(t, "", "--", "/etc/passwd").code)
	})
	t.Run("logs", func(t *testing.T) { // a daemon answers before it logs; containers have run meanwhile
		require.Contains(t, vminitctl(t, "", "vm", "logs").stdout, "vminitd starts")
	})
	t.Run("stdin", func(t *testing.T) {
		require.Equal(t, result{stdout: "hello"}, run(t, "hello", "-i", "--", "cat"))
		big := strings.Repeat("0123456789abcdef", 1<<16)
		r := run(t, big, "-i", "--", "cat")
		require.True(t, r.stdout == big, "%d bytes, %s", len(r.stdout), r.stderr)
		require.Equal(t, result{stdout: "0\n"}, run(t, "not passed on", "--", "sh", "-c", "wc -c"))
	})
	t.Run("process", func(t *testing.T) {
		t.Setenv("PASSED", "on")
		r := run(t, "", "--env", "A=b c", "-e", "PASSED", "-e", "NOT_SET_HERE", "--user", "user", "--cwd", "/tmp", "--", "sh", "-c", "echo $A $PASSED $HOME; pwd; id -u; env | grep -c NOT_SET")
		require.Equal(t, "b c on /home\n/tmp\n1000\n0\n", r.stdout, r.stderr)
		require.Equal(t, 125, run(t, "", "--user", "nobody-at-all", "--", "true").code)
	})
	t.Run("many at once", func(t *testing.T) {
		for i := range 3 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				require.Equal(t, result{stdout: fmt.Sprintln(i)}, run(t, "", "--", "sh", "-c", fmt.Sprintf("sleep 0.2; echo %d", i)))
			})
		}
	})
	t.Run("writable share is refused", func(t *testing.T) {
		r := run(t, "", "--mount", t.TempDir()+":/x", "--", "true")
		require.Equal(t, 125, r.code)
		require.Contains(t, r.stderr, "needs 9p")
	})
	t.Run("signal", func(t *testing.T) {
		cmd := command(t.Context(), "run", "--vm", "stay", "--rootfs", b.root, "--", "sh", "-c", "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		buf := make([]byte, 64)
		n, err := out.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "ready\n", string(buf[:n]))
		require.NoError(t, cmd.Process.Signal(unix.SIGTERM))
		n, _ = out.Read(buf)
		require.Equal(t, "caught\n", string(buf[:n]))
		_ = cmd.Wait()
		require.Equal(t, 5, cmd.ProcessState.ExitCode())
	})
	t.Run("impatience", func(t *testing.T) {
		cmd := command(t.Context(), "run", "--vm", "stay", "--rootfs", b.root, "--", "sh", "-c", "trap '' INT; echo ready; while :; do sleep 0.1; done")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = out.Read(make([]byte, 64))
		require.NoError(t, err)
		for range impatience {
			require.NoError(t, cmd.Process.Signal(unix.SIGINT))
			time.Sleep(50 * time.Millisecond) // two of a kind may become one
		}
		_ = cmd.Wait()
		require.Equal(t, exitInterrupted, cmd.ProcessState.ExitCode())
	})
	t.Run("slow reader", func(t *testing.T) { // as a pager at rest
		cmd := command(t.Context(), "run", "--vm", "stay", "--rootfs", b.root, "--", "sh", "-c", "head -c 400000 /dev/zero")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		time.Sleep(12 * time.Second) // longer than anybody who gives up waits
		n, err := io.Copy(io.Discard, out)
		require.NoError(t, err)
		require.NoError(t, cmd.Wait())
		require.Equal(t, int64(400000), n)
	})
	t.Run("reader gone", func(t *testing.T) {
		for _, args := range [][]string{{"yes"}, {"sh", "-c", "trap 'exit 3' PIPE; yes & wait"}} {
			cmd := command(t.Context(), append([]string{"run", "--vm", "stay", "--rootfs", b.root, "--"}, args...)...)
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, cmd.Start())
			_, err = out.Read(make([]byte, 2))
			require.NoError(t, err)
			require.NoError(t, out.Close())
			_ = cmd.Wait()
			require.Equal(t, 128+int(unix.SIGPIPE), cmd.ProcessState.ExitCode())
		}
	})
	t.Run("terminal", func(t *testing.T) { testTerminal(t, b) })
	t.Run("terminal without stdin", func(t *testing.T) { // it must not be raw
		master, slave := openPTY(t)
		cmd := command(t.Context(), "run", "-t", "--vm", "stay", "--rootfs", b.root, "--", "sh", "-c", "trap 'exit 7' INT; echo ready; while :; do sleep 0.1; done")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		require.NoError(t, cmd.Start())
		require.NoError(t, slave.Close())
		newTranscript(t, master).await("ready")
		_, err := master.WriteString("\x03")
		require.NoError(t, err)
		_ = cmd.Wait()
		require.Equal(t, 7, cmd.ProcessState.ExitCode())
	})
	t.Run("console", func(t *testing.T) {
		master, slave := openPTY(t)
		cmd := command(t.Context(), "vm", "console", "stay")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
		require.NoError(t, cmd.Start())
		require.NoError(t, slave.Close())
		newTranscript(t, master).await("Ctrl-] disconnects")
		_, err := master.WriteString("\x1d")
		require.NoError(t, err)
		require.NoError(t, cmd.Wait())
	})
	t.Run("bundle", func(t *testing.T) {
		dir := t.TempDir()
		spec := defaultSpec("default", "x")
		spec.Root.Path, spec.Process.Args = b.root, []string{"sh", "-c", "echo from the bundle"}
		config, err := json.Marshal(spec)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600))
		r := vminitctl(t, "", "run", "--vm", "stay", "--bundle", dir)
		require.Equal(t, result{stdout: "from the bundle\n"}, r)
		r = vminitctl(t, "", "run", "--vm", "stay", "--bundle", dir, "--", "echo", "other")
		require.Equal(t, result{stdout: "other\n"}, r)

		limit := int64(16 << 20)
		spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
		config, err = json.Marshal(spec)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600))
		r = vminitctl(t, "", "run", "--name", "greedy", "--vm", "stay", "--bundle", dir, "--", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
		require.Equal(t, result{code: 137, stderr: "vminitctl: greedy was out of memory and killed: give it more with --memory\n"}, r)
	})
	t.Run("events", func(t *testing.T) {
		cmd := command(t.Context(), "--address", "vm://stay", "--json", "events")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		require.Zero(t, run(t, "", "--name", "watched", "--", "true").code)
		var topics []string
		for s := bufio.NewScanner(out); len(topics) < 4 && s.Scan(); {
			var e struct {
				Topic string
				Event struct {
					ContainerID string `json:"containerId"`
				}
			}
			require.NoError(t, json.Unmarshal(s.Bytes(), &e), s.Text())
			if e.Event.ContainerID == "watched" {
				topics = append(topics, e.Topic)
			}
		}
		require.Equal(t, []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}, topics)
		require.NoError(t, cmd.Process.Signal(unix.SIGINT))
		require.NoError(t, cmd.Wait())
	})
}

// testTerminal types at a container through a terminal of our own.
func testTerminal(t *testing.T, b built) {
	master, slave := openPTY(t)
	cmd := command(t.Context(), "run", "-it", "--vm", "stay", "--rootfs", b.root, "--", "sh")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	require.NoError(t, unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 77}))
	require.NoError(t, cmd.Start())
	require.NoError(t, slave.Close())
	said := newTranscript(t, master)
	_, err := master.WriteString("stty size; tty; echo $TERM; echo size$((1+1))\n")
	require.NoError(t, err)
	said.await("33 77")
	said.await("xterm")
	said.await("size2")
	require.NoError(t, unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 44, Col: 88}))
	require.NoError(t, cmd.Process.Signal(unix.SIGWINCH))
	for i := 0; !strings.Contains(said.text(), "44 88"); i++ {
		require.Less(t, i, 100, "%s", said.text())
		_, err = master.WriteString("stty size\n")
		require.NoError(t, err)
		time.Sleep(100 * time.Millisecond)
	}
	// An interrupt typed in raw mode is the shell's, not ours.
	_, err = master.WriteString("sleep 99\n")
	require.NoError(t, err)
	time.Sleep(200 * time.Millisecond)
	_, err = master.WriteString("\x03exit 6\n")
	require.NoError(t, err)
	_ = cmd.Wait()
	require.Equal(t, 6, cmd.ProcessState.ExitCode(), said.text())
}
