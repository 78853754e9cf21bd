package tasksvc

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"vminit/internal/sys"
	"vminit/internal/vmtest/probe/report"
)

// TestHooks has every hook look around: in which namespaces, root and cgroup it
// is, when its turn is, with which state, arguments and environment.
func TestHooks(t *testing.T) {
	h := newHost(t)
	left := h.nothingLeft()
	for name, edit := range map[string]func(*specs.Spec){
		"plain":  func(*specs.Spec) {},
		"userns": fullUserNS,
		"few": func(s *specs.Spec) { // namespaces
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}}
		},
		"joined": func(s *specs.Spec) { s.Linux.Namespaces[4].Path = "/proc/self/ns/net" },
		"mixed": func(s *specs.Spec) {
			fullUserNS(s)
			s.Linux.Namespaces[4].Path = "/proc/self/ns/net"
		},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			b := newHookBox(h, edit)
			b.spec.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7}}
			b.spec.Process.Cwd = "/tmp"
			b.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 12, Hard: 34}}
			k := b.spec.Hooks
			for phase, list := range map[string]*[]specs.Hook{"prestart": &k.Prestart, "createRuntime": &k.CreateRuntime, "createContainer": &k.CreateContainer, //nolint:staticcheck // deprecated, not gone
				"startContainer": &k.StartContainer, "poststart": &k.Poststart, "poststop": &k.Poststop} {
				*list = []specs.Hook{b.witness(phase), b.script("echo " + phase + "2 >> order")}
			}
			created, err := b.create("c")
			require.NoError(t, err)
			require.Equal(t, []string{"prestart", "prestart2", "createRuntime", "createRuntime2", "createContainer", "createContainer2"}, strings.Fields(b.read("order")))
			pid, err := b.start("c")
			require.NoError(t, err)
			require.Equal(t, created.Pid, pid)
			require.Equal(t, []string{"startContainer", "startContainer2", "poststart", "poststart2"}, strings.Fields(b.read("order"))[6:])
			inside := map[string]uint64{}
			for _, file := range nsFiles {
				var st unix.Stat_t
				require.NoError(t, unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, file), &st))
				inside[file] = st.Ino
			}
			group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
			require.NoError(t, err)
			nspid := 1
			if name == "few" {
				nspid = int(pid)
			}
			b.end("c")
			require.Equal(t, []string{"poststop", "poststop2"}, strings.Fields(b.read("order"))[10:])

			for phase, x := range map[string]struct {
				inside bool
				status specs.ContainerState
				pid    int
				cwd    string
			}{
				"prestart": {false, "creating", int(pid), b.bundle}, "createRuntime": {false, "creating", int(pid), b.bundle},
				"createContainer": {true, "creating", nspid, b.bundle + "/rootfs"}, "startContainer": {true, "created", nspid, "/tmp"},
				"poststart": {false, "running", int(pid), b.bundle}, "poststop": {false, "stopped", 0, b.bundle},
			} {
				require.Equal(t, specs.State{Version: "1.3.0", ID: "c", Status: x.status, Pid: x.pid, Bundle: b.bundle, Annotations: b.spec.Annotations}, b.state(phase), phase)
				r := b.report(phase)
				for _, file := range nsFiles {
					want := ownNamespace(t, file)
					if x.inside {
						want = inside[file]
					}
					require.Equal(t, want, r.Namespaces[file], "%s: %s namespace", phase, file)
				}
				// sh runs the probe in the log's directory: OLDPWD is what it was given.
				require.ElementsMatch(t, []string{"PATH=" + b.log, "HOOK=" + phase, "PWD=" + b.log, "OLDPWD=" + x.cwd, "SHLVL=1"}, withDefaults(r.Env), phase)
				require.Equal(t, 0o22, r.Umask, phase)
				require.Empty(t, r.Signals.Blocked, phase)
				require.Zero(t, r.OOMScoreAdj, phase)
				require.Len(t, r.FDs, 3, phase)
				require.Equal(t, "/memfd:state (deleted)", r.FDs[0].Target, phase)
				if phase == "startContainer" { // like the user's process
					require.Equal(t, report.IDs{Real: 1000, Effective: 1000, Saved: 1000, FS: 1000}, r.UIDs)
					require.Equal(t, []int{7}, r.Groups)
					require.Equal(t, []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"}, r.Capabilities.Bounding)
					require.True(t, r.NoNewPrivs)
					require.Equal(t, report.Rlimit{Soft: 12, Hard: 34}, r.Rlimits["CORE"])
				} else {
					require.Equal(t, report.IDs{}, r.UIDs, phase)
					require.Greater(t, len(r.Capabilities.Effective), 10, phase)
				}
				if x.inside && name == "few" { // the cgroup namespace shows where
					require.Contains(t, string(group), r.Cgroup.Path, phase)
				} else if !x.inside {
					require.Contains(t, r.Cgroup.Raw, "/"+testTree+"/"+hooksCgroup+"/default/c", phase)
				}
			}
			left()
		})
	}
	h.t = t
}

// withDefaults adds what some shells leave out.
func withDefaults(env []string) []string {
	for _, e := range env {
		if strings.HasPrefix(e, "SHLVL=") {
			return env
		}
	}
	return append(env, "SHLVL=1")
}

// TestHookExec: path, argv and environment are what the config says and no more.
func TestHookExec(t *testing.T) {
	h := newHost(t)
	b := newHookBox(h, func(*specs.Spec) {})
	wrapper := b.log + "/hook" // stdout of a hook is nowhere
	require.NoError(t, os.WriteFile(wrapper, []byte("#!"+b.log+"/busybox sh\n"+b.log+"/busybox tr '\\0' '\\n' < /proc/self/environ > "+b.log+"/env\n"+
		"exec "+b.log+"/probe report >> "+b.log+"/argv.$#\n"), 0o755))
	k := b.spec.Hooks
	k.CreateRuntime = []specs.Hook{{Path: wrapper}, {Path: wrapper, Args: []string{"zero", "one", "", "three"}}}
	k.CreateContainer = []specs.Hook{{Path: b.log + "/busybox", Args: []string{"mount", "-t", "tmpfs", "made-by-hook", "tmp"}}} // in the root file system
	// The program is at path, whatever argv says.
	k.StartContainer = []specs.Hook{{Path: "/bin/busybox", Args: []string{"touch", "/tmp/started"}}}
	_, err := b.create("c")
	require.NoError(t, err)
	pid, err := b.start("c")
	require.NoError(t, err)
	require.NotEmpty(t, b.read("argv.0"))
	require.NotEmpty(t, b.read("argv.3"))
	require.NotContains(t, b.read("env"), "PATH=")
	require.FileExists(t, fmt.Sprintf("/proc/%d/root/tmp/started", pid))
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	require.NoError(t, err)
	require.Contains(t, string(mounts), " /tmp rw,relatime - tmpfs made-by-hook ")
	b.end("c")
}

// TestFailingHooks: the first that fails ends what it belongs to, nothing stays,
// and the hooks of poststop are run.
func TestFailingHooks(t *testing.T) {
	h := newHost(t)
	sub := h.events.Subscribe()
	defer sub.Close()
	left := h.nothingLeft()
	for _, phase := range hookNames {
		t.Run(phase, func(t *testing.T) {
			h.t = t
			topics(sub)
			b := newHookBox(h, func(*specs.Spec) {})
			k := b.spec.Hooks
			bad := b.script("busybox seq 1 5000 >&2; echo what went wrong >&2; exit 3")
			list := []specs.Hook{b.script("echo before >> order"), bad, b.script("echo after >> order")}
			k.Poststop = []specs.Hook{b.witness("poststop")}
			switch phase {
			case "prestart":
				k.Prestart = list //nolint:staticcheck // deprecated, not gone
			case "createRuntime":
				k.CreateRuntime = list
			case "createContainer":
				k.CreateContainer = list
			case "startContainer":
				k.StartContainer = list
			case "poststart":
				k.Poststart = list
			case "poststop":
				k.Poststop = append(list, k.Poststop...)
			}
			want := fmt.Sprintf("%s hook 1, %s/busybox: exit status 3: ", phase, b.log)
			check := func(err error) {
				t.Helper()
				require.ErrorContains(t, err, want)
				require.True(t, strings.HasSuffix(err.Error(), "4999\n5000\nwhat went wrong"), "%s", err)
				require.Less(t, len(err.Error()), maxHookText+300)
			}
			_, err := b.create("c")
			if strings.HasPrefix(phase, "create") || phase == "prestart" {
				check(err)
				require.Equal(t, []string{"before", "poststop"}, strings.Fields(b.read("order")))
				_, err = h.State(h.ctx(), &taskv3.StateRequest{ID: "c"})
				require.ErrorIs(t, err, sys.ErrNotFound)
				require.Empty(t, topics(sub))
			} else {
				require.NoError(t, err)
				_, err = b.start("c")
				switch phase {
				case "startContainer":
					check(err)
				case "poststart":
					check(err)
					st, err := h.State(h.ctx(), &taskv3.StateRequest{ID: "c"})
					require.NoError(t, err)
					require.Equal(t, Stopped.status(), st.Status)
				default:
					require.NoError(t, err)
					_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c", Signal: 9})
					require.NoError(t, err)
				}
				w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c"})
				require.NoError(t, err)
				require.Equal(t, uint32(137), w.ExitStatus)
				h.delete("c")
				switch phase {
				case "startContainer":
					require.Equal(t, []string{"/tasks/create", "/tasks/delete"}, topics(sub), "it never started")
					require.Equal(t, []string{"before", "poststop"}, strings.Fields(b.read("order")))
				case "poststart":
					require.Equal(t, []string{"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}, topics(sub))
					require.Equal(t, []string{"before", "poststop"}, strings.Fields(b.read("order")))
				default:
					require.Equal(t, []string{"before", "after", "poststop"}, strings.Fields(b.read("order")), "all run")
				}
			}
			require.Equal(t, specs.StateStopped, b.state("poststop").Status)
			left()
		})
	}
	h.t = t
}

// TestHookTimeout: what does not end in time is killed with its descendants,
// those that have made themselves independent included.
func TestHookTimeout(t *testing.T) {
	timeout, phases := 1, hookNames[1:]   // prestart is like createRuntime
	if os.Getenv("VMINIT_RUNG") == "vm" { // emulated: shells take their time
		timeout, phases = 3, []string{"createRuntime", "startContainer"}
	}
	h := newHost(t)
	left := h.nothingLeft()
	for _, phase := range phases {
		t.Run(phase, func(t *testing.T) {
			h.t = t
			b := newHookBox(h, func(*specs.Spec) {})
			slow := b.script("busybox setsid busybox sh -c 'echo $$ > pid; exec busybox sleep 7777' & busybox sleep 7778")
			slow.Timeout = ptr(timeout)
			k := b.spec.Hooks
			*map[string]*[]specs.Hook{"prestart": &k.Prestart, "createRuntime": &k.CreateRuntime, "createContainer": &k.CreateContainer, //nolint:staticcheck // deprecated, not gone
				"startContainer": &k.StartContainer, "poststart": &k.Poststart, "poststop": &k.Poststop}[phase] = []specs.Hook{slow}
			begin := time.Now()
			_, err := b.create("c")
			if err == nil {
				_, err = b.start("c")
				if phase == "poststop" {
					require.NoError(t, err)
					_, err = h.Kill(h.ctx(), &taskv3.KillRequest{ID: "c", Signal: 9})
					require.NoError(t, err)
				}
				_, waitErr := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c"})
				require.NoError(t, waitErr)
				h.delete("c")
			}
			if phase != "poststop" {
				require.ErrorContains(t, err, phase+" hook 0, "+b.log+"/busybox: killed after its timeout of "+strconv.Itoa(timeout)+"s")
			}
			require.Less(t, time.Since(begin), 20*time.Second)
			require.NotEmpty(t, b.read("pid"))
			require.Empty(t, sleepers(t, "7777"))
			left()
		})
	}
	h.t = t
}

// sleepers finds processes that have an argument.
func sleepers(t *testing.T, arg string) (pids []string) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, d := range dirs {
		if line, err := os.ReadFile(d + "/cmdline"); err == nil && strings.Contains(string(line), "sleep\x00"+arg+"\x00") {
			pids = append(pids, filepath.Base(d))
		}
	}
	return pids
}

// TestHookLeavesProcess: what a hook starts and leaves, with the hook's stderr
// open, lives as long as its container, and no longer.
func TestHookLeavesProcess(t *testing.T) {
	h := newHost(t)
	left := h.nothingLeft()
	b := newHookBox(h, func(*specs.Spec) {})
	stay := func(n string) specs.Hook {
		return b.script("busybox setsid busybox sh -c 'exec busybox sleep " + n + "' & exit 0")
	}
	b.spec.Hooks.CreateRuntime, b.spec.Hooks.Poststop = []specs.Hook{stay("8881")}, []specs.Hook{stay("8882")}
	_, err := b.create("c")
	require.NoError(t, err)
	_, err = b.start("c")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(sleepers(t, "8881")) == 1 }, 5*time.Second, 10*time.Millisecond)
	b.end("c")
	require.Empty(t, sleepers(t, "8881"))
	require.Empty(t, sleepers(t, "8882"))
	left()
}

// TestHookCaller: a hook without a timeout ends with the call it belongs to.
func TestHookCaller(t *testing.T) {
	h := newHost(t)
	left := h.nothingLeft()
	b := newHookBox(h, func(*specs.Spec) {})
	b.spec.Hooks.CreateRuntime = []specs.Hook{b.script("echo here > here; busybox sleep 9991")}
	b.spec.Hooks.Poststop = []specs.Hook{b.witness("poststop")}
	b.bundle = b.host.bundle(b.spec)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer cancel()
		for i := 0; i < 1000 && b.read("here") == ""; i++ {
			time.Sleep(5 * time.Millisecond)
		}
	}()
	_, err := b.Create(ctx, &taskv3.CreateTaskRequest{ID: "c", Bundle: b.bundle})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, specs.StateStopped, b.state("poststop").Status, "it runs all the same")
	left()
}

// TestPoststartAfterExit: while poststart hooks run the container is neither
// paused nor deleted, and a program that has ended already does not matter.
func TestPoststartAfterExit(t *testing.T) {
	h := newHost(t)
	b := newHookBox(h, func(s *specs.Spec) { s.Process.Args = []string{"/bin/true"} })
	b.spec.Hooks.Poststart = []specs.Hook{b.script("while [ ! -e go ]; do busybox sleep 0.02; done")}
	_, err := b.create("c")
	require.NoError(t, err)
	started := make(chan error, 1)
	go func() {
		_, err := b.Start(context.Background(), &taskv3.StartRequest{ID: "c"})
		started <- err
	}()
	w, err := h.Wait(h.ctx(), &taskv3.WaitRequest{ID: "c"})
	require.NoError(t, err)
	require.Zero(t, w.ExitStatus)
	_, err = h.Delete(h.ctx(), &taskv3.DeleteRequest{ID: "c"})
	require.ErrorIs(t, err, sys.ErrState)
	require.ErrorContains(t, err, "start is under way")
	require.NoError(t, os.WriteFile(b.log+"/go", nil, 0o644))
	require.NoError(t, <-started)
	h.delete("c")
}

// TestRefusedHooks: what cannot be a hook is refused before anything is made.
func TestRefusedHooks(t *testing.T) {
	h := newHost(t)
	left := h.nothingLeft()
	for _, x := range []struct {
		hook specs.Hook
		text string
		mark error
	}{
		{specs.Hook{Path: "bin/true"}, `hooks.createRuntime[0].path "bin/true" is not an absolute path`, sys.ErrInvalid},
		{specs.Hook{}, `hooks.createRuntime[0].path "" is not an absolute path`, sys.ErrInvalid},
		{specs.Hook{Path: "/bin/true", Timeout: ptr(0)}, "hooks.createRuntime[0].timeout is 0: it must be greater than zero", sys.ErrInvalid},
		{specs.Hook{Path: "/bin/true", Timeout: ptr(-1)}, "hooks.createRuntime[0].timeout is -1", sys.ErrInvalid},
		{specs.Hook{Path: "/bin/true", Args: []string{"a\x00b"}}, "contains a NUL byte", sys.ErrInvalid},
		{specs.Hook{Path: "/no/such/hook"}, `createRuntime hook 0, /no/such/hook: exec "/no/such/hook": no such file or directory (execve)`, unix.ENOENT},
		{specs.Hook{Path: "/proc/self/maps"}, "permission denied (execve)", unix.EACCES},
	} {
		s := probeSpec()
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{x.hook}}
		require.ErrorIs(t, h.refused(s, x.text), x.mark)
		left()
	}
	s := probeSpec()
	s.Linux.CgroupsPath = "/.hooks/mine"
	require.ErrorIs(t, h.refused(s, ".hooks is the daemon's own"), sys.ErrInvalid)
	// A timeout longer than any life is none.
	s = probeSpec()
	s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: h.busybox(), Args: []string{"true"}, Timeout: ptr(1 << 62)}}}
	require.Equal(t, 1, h.report("c", s).PID)
}

func TestInnermostPID(t *testing.T) {
	pid, err := innermostPID([]byte("Name:\tx\nNSpid:\t4711\t12\t1\nNSpgid:\t4711\t12\t1\n"))
	require.NoError(t, err)
	require.Equal(t, 1, pid)
	pid, err = innermostPID([]byte("NSpid:\t42\n"))
	require.NoError(t, err)
	require.Equal(t, 42, pid)
	for _, bad := range []string{"", "NSpid:\n", "NSpid:\tx\n"} {
		_, err = innermostPID([]byte(bad))
		require.Error(t, err, bad)
	}
}
