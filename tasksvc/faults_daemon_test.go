package tasksvc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/internal/sys"
	"vminit/vsockstream"
)

// TestFaultsDaemon is the daemon that TestFaults starts; alone it does nothing.
func TestFaultsDaemon(t *testing.T) {
	fd, err := strconv.Atoi(os.Getenv("VMINIT_FAULTS"))
	if err != nil {
		return
	}
	control := controlSocket{fd}
	d := newFaultsDaemon(t)
	for name := range d.scenarios { // whatever is made once is made now
		d.prepare(name)
		_, failure := d.live()
		require.NoError(t, failure)
		d.cleanUp()
	}
	var nrs []uint32
	for _, nr := range fallible {
		nrs = append(nrs, nr)
	}
	listener, err := watchSyscalls(nrs)
	require.NoError(t, err)
	require.NoError(t, unix.Sendmsg(fd, []byte("filter"), unix.UnixRights(listener), nil, 0))
	unix.Close(listener)
	for {
		var o faultOrder
		if control.receive(&o) != nil {
			return // the test has ended
		}
		d.prepare(o.Scenario)
		require.NoError(t, control.send(faultReport{Ready: true}))
		require.NoError(t, control.receive(&o))
		call, failure := d.live()
		r := faultReport{Ended: true, Call: call}
		if failure != nil {
			r.Error = failure.Error()
		}
		require.NoError(t, control.send(r))
		require.NoError(t, control.receive(&o))
		r.Left = d.cleanUp()
		require.NoError(t, control.send(r))
	}
}

// faultsDaemon is a Service with streams and two kinds of containers.
type faultsDaemon struct {
	*host
	t         *testing.T
	hub       *vsockstream.Hub
	address   string
	scenarios map[string]*faultScenario

	// Of the life under way.
	name    string
	serial  int
	ids     []string // of its streams
	streams []vsockstream.Conn
	before  holdings
}

type faultScenario struct {
	bundle   string
	rootfs   []*types.Mount
	terminal bool
}

func newFaultsDaemon(t *testing.T) *faultsDaemon {
	d := &faultsDaemon{host: newHost(t), t: t}
	d.hub = vsockstream.NewHub(vsockstream.HubConfig{ClaimTimeout: 5 * time.Second})
	d.Service.cfg.Streams = d.hub
	d.address = "unix://" + filepath.Join(d.fifos, "streams")
	l, err := vsockstream.ListenConfig{}.Listen(d.address)
	require.NoError(t, err)
	go d.hub.Serve(context.Background(), l)
	t.Cleanup(func() { d.hub.Close() })

	plain := testSpec("")
	plain.Process.Args = []string{"/bin/sleep", "1000"}
	root := d.host.bundle(plain)
	require.NoError(t, os.Mkdir(root+"/base", 0o755))
	require.NoError(t, os.Rename(root+"/rootfs", root+"/base/root"))
	rich := edited(testSpec(""), fullUserNS)
	rich.Process.Args, rich.Process.Terminal = []string{"/bin/sleep", "1000"}, true
	rich.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{5}}
	rich.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 100}}
	rich.Process.ConsoleSize = &specs.Box{Height: 24, Width: 80}
	rich.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"swapon"}, Action: specs.ActErrno}}}
	rich.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	rich.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	rich.Mounts = append(rich.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup", "mode=1777"}},
		specs.Mount{Destination: "/etc", Type: "bind", Source: root + "/base/root/bin", Options: []string{"rbind", "ro", "rprivate"}})
	d.scenarios = map[string]*faultScenario{
		"plain": {bundle: root, rootfs: []*types.Mount{
			{Type: "bind", Source: root + "/base/root", Options: []string{"rbind", "ro"}},
			{Type: "tmpfs", Source: "tmpfs"},
			{Type: "format/mkdir/overlay", Source: "overlay", Options: []string{
				"X-containerd.mkdir.path={{ mount 1 }}/upper:0755", "X-containerd.mkdir.path={{ mount 1 }}/work:0755",
				"lowerdir={{ mount 0 }}", "upperdir={{ mount 1 }}/upper", "workdir={{ mount 1 }}/work"}},
		}},
		"rich": {bundle: d.host.bundle(rich), terminal: true},
	}
	return d
}

// prepare does what a host does before it asks for a container.
func (d *faultsDaemon) prepare(scenario string) {
	d.name = scenario
	d.settleNetwork()
	d.before = d.holdings()
	d.ids, d.streams = nil, nil
	for range 3 {
		d.serial++
		id := strconv.Itoa(d.serial)
		c, err := vsockstream.Dial(d.ctx(), d.address)
		require.NoError(d.t, err)
		require.NoError(d.t, vsockstream.Open(d.ctx(), c, vsockstream.FramingU32, id))
		d.ids, d.streams = append(d.ids, id), append(d.streams, c)
	}
}

// settleNetwork has the next container's network namespace made now: who makes
// it in the background has a socket meanwhile, which nobody has left behind.
func (d *faultsDaemon) settleNetwork() {
	d.refill.Stop()
	buf := make([]byte, 1<<20)
	for deadline := time.Now().Add(10 * time.Second); bytes.Contains(buf[:runtime.Stack(buf, true)], []byte("nsexec.newNetwork")); time.Sleep(time.Millisecond) {
		require.True(d.t, time.Now().Before(deadline), "a network namespace is being made for ever")
	}
	d.spareNetwork()
}

// live is a container's life up to the first call that fails.
func (d *faultsDaemon) live() (call string, err error) {
	s := d.scenarios[d.name]
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	uri := func(n int) string { return "stream://" + d.ids[n] }
	spec, err := json.Marshal(&specs.Process{Args: []string{"/bin/true"}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: s.terminal})
	if err != nil {
		return "spec", err
	}
	create := &taskv3.CreateTaskRequest{ID: "c", Bundle: s.bundle, Rootfs: s.rootfs, Stdin: uri(0), Stdout: uri(1), Terminal: s.terminal}
	for _, step := range []struct {
		name string
		call func() error
	}{
		{"create", func() error { _, err := d.Create(ctx, create); return err }},
		{"start", func() error { _, err := d.Start(ctx, &taskv3.StartRequest{ID: "c"}); return err }},
		{"state", func() error { _, err := d.State(ctx, &taskv3.StateRequest{ID: "c"}); return err }},
		{"pids", func() error { _, err := d.Pids(ctx, &taskv3.PidsRequest{ID: "c"}); return err }},
		{"update", func() error {
			_, err := d.Update(ctx, &taskv3.UpdateTaskRequest{ID: "c", Resources: &anypb.Any{Value: []byte(`{"devices":[{"allow":true,"access":"rwm"}]}`)}})
			return err
		}},
		{"exec", func() error {
			_, err := d.Exec(ctx, &taskv3.ExecProcessRequest{ID: "c", ExecID: "e", Stdout: uri(2), Terminal: s.terminal, Spec: &anypb.Any{Value: spec}})
			return err
		}},
		{"start exec", func() error { _, err := d.Start(ctx, &taskv3.StartRequest{ID: "c", ExecID: "e"}); return err }},
		{"wait exec", func() error { _, err := d.Wait(ctx, &taskv3.WaitRequest{ID: "c", ExecID: "e"}); return err }},
		{"delete exec", func() error { _, err := d.Delete(ctx, &taskv3.DeleteRequest{ID: "c", ExecID: "e"}); return err }},
		{"pause", func() error { _, err := d.Pause(ctx, &taskv3.PauseRequest{ID: "c"}); return err }},
		{"resume", func() error { _, err := d.Resume(ctx, &taskv3.ResumeRequest{ID: "c"}); return err }},
		{"kill", func() error { _, err := d.Kill(ctx, &taskv3.KillRequest{ID: "c", Signal: 9}); return err }},
		{"wait", func() error { _, err := d.Wait(ctx, &taskv3.WaitRequest{ID: "c"}); return err }},
		{"delete", func() error { _, err := d.Delete(ctx, &taskv3.DeleteRequest{ID: "c"}); return err }},
	} {
		if err := step.call(); err != nil {
			return step.name, err
		}
	}
	return "", nil
}

// cleanUp is what a host does after a failure: kill, wait, delete, close. It
// returns what is there now and was not before, or the other way round.
func (d *faultsDaemon) cleanUp() string {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if _, err := d.State(ctx, &taskv3.StateRequest{ID: "c"}); err == nil {
		_, _ = d.Kill(ctx, &taskv3.KillRequest{ID: "c", Signal: 9, All: true})
		if _, err := d.Wait(ctx, &taskv3.WaitRequest{ID: "c"}); err != nil {
			return "wait: " + err.Error()
		}
		if _, err := d.Delete(ctx, &taskv3.DeleteRequest{ID: "c"}); err != nil && !errors.Is(err, sys.ErrNotFound) {
			return "delete: " + err.Error()
		}
	}
	for i, c := range d.streams {
		c.Close()
		done, cancel := context.WithCancel(ctx)
		cancel()
		if s, err := d.hub.Claim(done, d.ids[i]); err == nil { // nobody has
			s.Close()
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		diff := d.before.diff(d.holdings())
		if diff == "" || time.Now().After(deadline) {
			return diff
		}
		time.Sleep(time.Millisecond)
	}
}

// holdings are what a process has, each thing with how often.
type holdings map[string]int

var inodeNumber = regexp.MustCompile(`\[\d+\]`)

func (d *faultsDaemon) holdings() holdings {
	h := holdings{}
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(d.t, err)
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && target != "anon_inode:bpf-prog" && !strings.HasPrefix(target, "net:") { // some of those are kept
			h["fd "+inodeNumber.ReplaceAllString(target, "")]++
		}
	}
	buf := make([]byte, 1<<20)
	for stack := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		_, birth, _ := strings.Cut(stack, "created by ")
		birth, _, _ = strings.Cut(birth, " in goroutine")
		if birth, _, _ = strings.Cut(birth, "\n"); birth == "vminit/nsexec.newNetwork" || birth == "time.goFunc" {
			continue // a network namespace is being made for the next container
		}
		h["goroutine of "+birth]++
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(d.t, err)
	for line := range strings.Lines(string(mounts)) {
		h["mount "+line]++
	}
	walk := func(kind, dir string, contents bool) {
		_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err == nil && (e.IsDir() || contents) {
				h[kind+" "+path]++
			}
			return nil
		})
	}
	walk("cgroup", filepath.Join(cgroupMount(d.t), testTree), false)
	delete(h, "cgroup "+filepath.Join(cgroupMount(d.t), testTree, defaultNamespace)) // empty, it goes with the next container
	for _, s := range d.scenarios {
		walk("file", s.bundle, true)
	}
	children, err := filepath.Glob("/proc/self/task/*/children")
	require.NoError(d.t, err)
	for _, file := range children {
		pids, _ := os.ReadFile(file)
		for _, pid := range strings.Fields(string(pids)) {
			h["child "+pid]++
		}
	}
	h["child in the launcher"] = d.Service.cfg.Launcher.Children()
	return h
}

func (h holdings) diff(now holdings) string {
	var out strings.Builder
	keys := slices.AppendSeq(slices.Collect(maps.Keys(h)), maps.Keys(now))
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		if h[k] != now[k] {
			fmt.Fprintf(&out, "  %s: %d before, %d now\n", strings.TrimSpace(k), h[k], now[k])
		}
	}
	return out.String()
}
