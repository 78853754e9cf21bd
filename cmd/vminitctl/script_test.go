package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/microvm"
)

// Scripts of the OCI verbs, testdata/script/*.txt, run by the real programs. Each
// has a state directory, and so a daemon, of its own.
//
// Beside testscript's own commands there are:
//
//	bundle NAME [key=JSON...] [-- ARG...]  make a bundle of a plain config with
//	                                       these changes, keys being paths in it
//	await STATUS ID                        wait until the container has the status
//	grow FILE TEXT                         wait until the file has the text
//	gone FILE                              wait until the file is not there
//	console SOCKET FILE                    take a terminal and write what it says
//	                                       to the file
//	together N COMMAND...                  run it N times at once, %d being which
//	nothing                                no cgroup is left of the daemon's
//
// Conditions: [limits] is true where there are memory, cpu and pids controllers.

// binariesEnv names a directory with both programs and a root file system, where
// they cannot be built.
const binariesEnv = "VMINITCTL_TEST_BINARIES"

func TestScripts(t *testing.T) {
	rung := os.Getenv("VMINIT_RUNG")
	if os.Getuid() != 0 {
		if rung == "root" || rung == "vm" {
			t.Fatal("must run as root")
		}
		t.Skip("needs root")
	}
	inGuest := os.Getenv(binariesEnv) != ""
	if rung == "vm" && !inGuest {
		t.Skip("runs on rung root, and in a guest by TestScriptsInGuest")
	}
	dir := os.Getenv(binariesEnv)
	if !inGuest {
		dir = buildPrograms(t)
		t.Parallel() // beside tests that wait for guests
	}
	if inGuest {
		require.True(t, hasLimits(), "the guest has all controllers")
	}
	testscript.Run(t, testscript.Params{
		Dir:         "testdata/script",
		WorkdirRoot: t.TempDir(),
		Setup: func(e *testscript.Env) error {
			if err := os.Mkdir(filepath.Join(e.WorkDir, "run"), 0o700); err != nil {
				return err
			}
			e.Vars = append(e.Vars,
				microvm.StateDirEnv+"="+filepath.Join(e.WorkDir, "run", "vminit"),
				"PATH="+dir+":"+os.Getenv("PATH"),
				"ROOTFS="+filepath.Join(dir, "root"),
				"VMINIT_IDLE_TIMEOUT=20s",
			)
			e.Defer(func() {
				stop := exec.Command(filepath.Join(dir, "vminitctl"), "daemon", "stop", "--now")
				stop.Env = e.Vars
				if out, err := stop.CombinedOutput(); err != nil {
					t.Errorf("stop the daemon of %s: %v: %s", e.WorkDir, err, out)
				}
			})
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "limits" {
				return hasLimits(), nil
			}
			return false, fmt.Errorf("condition %q is unknown", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"bundle": scriptBundle, "await": scriptAwait, "grow": scriptGrow, "gone": scriptGone, "console": scriptConsole,
			"together": scriptTogether, "nothing": scriptNothing,
		},
	})
}

// buildPrograms builds both programs beside each other, and makes a root file
// system.
func buildPrograms(t *testing.T) string {
	b, err := artifacts()
	require.NoError(t, err)
	dir := filepath.Dir(b.daemon)
	build := exec.Command("go", "build", "-tags", "no_grpc", "-o", filepath.Join(dir, "vminitctl"), "vminit/cmd/vminitctl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir
}

// hasLimits reports whether the usual controllers are those of cgroup v2.
func hasLimits() bool {
	data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	have := strings.Fields(string(data))
	return err == nil && slices.Contains(have, "memory") && slices.Contains(have, "cpu") && slices.Contains(have, "pids")
}

// cgroupRoot is where the daemon's cgroups are.
func cgroupRoot() string {
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return "/sys/fs/cgroup"
	}
	return "/sys/fs/cgroup/unified"
}

func scriptBundle(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: bundle NAME [key=JSON...] [-- ARG...]")
	}
	s := exampleSpec()
	s.Root.Path = ts.Getenv("ROOTFS")
	s.Process.Terminal = false
	name, rest := args[0], args[1:]
	var edits []string
	for len(rest) > 0 && rest[0] != "--" {
		edits, rest = append(edits, rest[0]), rest[1:]
	}
	if len(rest) > 0 {
		s.Process.Args = rest[1:]
	}
	data, err := json.Marshal(s)
	ts.Check(err)
	var config map[string]any
	ts.Check(json.Unmarshal(data, &config))
	for _, e := range edits {
		path, text, _ := strings.Cut(e, "=")
		var value any
		if err := json.Unmarshal([]byte(text), &value); err != nil {
			ts.Fatalf("%s: %v", e, err)
		}
		m, keys := config, strings.Split(path, ".")
		for _, k := range keys[:len(keys)-1] {
			next, ok := m[k].(map[string]any)
			if !ok {
				next = map[string]any{}
				m[k] = next
			}
			m = next
		}
		m[keys[len(keys)-1]] = value
		if value == nil {
			delete(m, keys[len(keys)-1])
		}
	}
	data, err = json.MarshalIndent(config, "", "  ")
	ts.Check(err)
	ts.Check(os.MkdirAll(ts.MkAbs(name), 0o755))
	ts.Check(os.WriteFile(filepath.Join(ts.MkAbs(name), "config.json"), data, 0o644))
}

// scriptTimeout is how long something may take that takes a moment: a guest under
// emulation has long ones.
const scriptTimeout = 60 * time.Second

// until asks again and again.
func until(ts *testscript.TestScript, what string, done func() bool) {
	for end := time.Now().Add(scriptTimeout); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("waited in vain: %s", what)
		}
	}
}

func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await STATUS ID")
	}
	last := ""
	until(ts, args[1]+" to be "+args[0], func() bool {
		cmd := scriptCommand(ts, "vminitctl", "state", args[1])
		out, _ := cmd.CombinedOutput()
		var s ociState
		_ = json.Unmarshal(out, &s)
		if s.Status == "stopped" && args[0] == "running" {
			ts.Fatalf("%s", out)
		}
		last = string(out)
		return s.Status == args[0]
	})
	ts.Logf("%s", last)
}

func scriptGrow(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: grow FILE TEXT")
	}
	until(ts, args[0]+" to have "+args[1], func() bool {
		data, _ := os.ReadFile(ts.MkAbs(args[0]))
		return bytes.Contains(data, []byte(args[1]))
	})
}

func scriptGone(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: gone FILE")
	}
	until(ts, args[0]+" to be gone", func() bool {
		found, err := filepath.Glob(ts.MkAbs(args[0]))
		ts.Check(err)
		return len(found) == 0
	})
}

// scriptCommand is a command in the script's environment.
func scriptCommand(ts *testscript.TestScript, name string, args ...string) *exec.Cmd {
	path := name
	for dir := range strings.SplitSeq(ts.Getenv("PATH"), ":") {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			path = filepath.Join(dir, name)
			break
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = ts.MkAbs(".")
	for _, v := range []string{"PATH", microvm.StateDirEnv, "VMINIT_IDLE_TIMEOUT", "HOME", "TMPDIR"} {
		cmd.Env = append(cmd.Env, v+"="+ts.Getenv(v))
	}
	return cmd
}

func scriptConsole(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: console SOCKET FILE")
	}
	l, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	out, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	ts.Defer(func() { l.Close() })
	go func() {
		defer out.Close()
		if err := takeTerminal(l, out); err != nil {
			fmt.Fprintln(out, "console:", err)
		}
	}()
}

// takeTerminal accepts one connection and copies what the terminal says that comes
// over it. A line "answer" is typed as an answer to each question.
func takeTerminal(l net.Listener, out *os.File) error {
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	data, oob := make([]byte, 4096), make([]byte, 256)
	n, oobn, _, _, err := c.(*net.UnixConn).ReadMsgUnix(data, oob)
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 || n == 0 {
		return fmt.Errorf("%d messages with %d bytes: %v", len(messages), n, err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return err
	}
	tty := os.NewFile(uintptr(fds[0]), string(data[:n]))
	defer tty.Close()
	for {
		n, err := tty.Read(data)
		if err != nil {
			return nil // EIO: nobody has the terminal any more
		}
		_, _ = out.Write(data[:n])
		if bytes.Contains(data[:n], []byte("?")) {
			_, _ = tty.WriteString("answer\n")
		}
	}
}

func scriptTogether(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: together N COMMAND...")
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	failed := make(chan error, n)
	for i := range n {
		go func() {
			var own []string
			for _, a := range args[2:] {
				own = append(own, strings.ReplaceAll(a, "%d", strconv.Itoa(i)))
			}
			out, err := scriptCommand(ts, args[1], own...).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%d: %w: %s", i, err, out)
			}
			failed <- err
		}()
	}
	for range n {
		if err := <-failed; err != nil {
			ts.Fatalf("%v", err)
		}
	}
}

// scriptNothing checks that the script's daemon has no container, no process and
// no cgroup left.
func scriptNothing(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: nothing")
	}
	out, err := scriptCommand(ts, "vminitctl", "list", "-q").CombinedOutput()
	ts.Check(err)
	if len(out) > 0 {
		ts.Fatalf("containers left: %s", out)
	}
	for tree := range maps.Keys(scriptTrees(ts)) {
		until(ts, "no cgroup to be left in "+tree, func() bool {
			found, err := filepath.Glob(filepath.Join(tree, "*", "cgroup.procs"))
			ts.Check(err)
			return len(found) == 0
		})
	}
}

// scriptTrees are the cgroup trees of the script's daemons.
func scriptTrees(ts *testscript.TestScript) map[string]bool {
	trees := map[string]bool{}
	places, err := filepath.Glob(filepath.Join(ts.Getenv(microvm.StateDirEnv), "local-*"))
	ts.Check(err)
	for _, p := range places {
		trees[filepath.Join(cgroupRoot(), localPlace{p, filepath.Base(p)}.tree())] = true
	}
	return trees
}
