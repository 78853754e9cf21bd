package tasksvc

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"vminit/internal/vmtest/probe/report"
)

// hookBox is a container whose hooks write down what they see.
type hookBox struct {
	*host
	spec   *specs.Spec
	bundle string
	log    string // directory the hooks write to, at the same place inside
}

// newHookBox prepares a container that sleeps. Everything is where others than
// root can get at it.
func newHookBox(h *host, edit func(*specs.Spec)) *hookBox {
	dir, err := os.MkdirTemp("", "hooks")
	require.NoError(h.t, err)
	h.t.Cleanup(func() { os.RemoveAll(dir) })
	b := &hookBox{host: h, spec: probeSpec(), log: filepath.Join(dir, "log")}
	require.NoError(h.t, os.Chmod(dir, 0o755))
	require.NoError(h.t, os.Mkdir(b.log, 0o777))
	require.NoError(h.t, os.Chmod(b.log, 0o777))
	require.NoError(h.t, os.WriteFile(b.log+"/order", nil, 0o666))
	require.NoError(h.t, os.Chmod(b.log+"/order", 0o666))
	require.NoError(h.t, os.Link(h.busybox(), b.log+"/busybox"))
	probe, err := probeBinary()
	require.NoError(h.t, err)
	shared := filepath.Join(h.fifos, "probe")
	if _, err := os.Stat(shared); err != nil {
		require.NoError(h.t, os.WriteFile(shared, probe, 0o755))
	}
	require.NoError(h.t, os.Link(shared, b.log+"/probe"))
	b.spec.Process.Args = []string{"/bin/sleep", "1000"}
	b.spec.Annotations = map[string]string{"org.example.key": "a value", "io.kubernetes.cri.container-type": "container"}
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: b.log, Source: b.log, Type: "bind", Options: []string{"bind"}})
	b.spec.Hooks = &specs.Hooks{}
	edit(b.spec)
	return b
}

// script is a hook that runs a shell script in the log's directory.
func (b *hookBox) script(text string) specs.Hook {
	return specs.Hook{Path: b.log + "/busybox", Args: []string{"sh", "-c", "cd " + b.log + "\n" + text}, Env: []string{"PATH=" + b.log}}
}

// witness is a hook that writes down its state, a report and its turn.
func (b *hookBox) witness(name string) specs.Hook {
	return b.script("busybox cat > " + name + ".state; HOOK=" + name + " probe report > " + name + ".report; echo " + name + " >> order")
}

func (b *hookBox) create(id string) (*taskv3.CreateTaskResponse, error) {
	if b.bundle == "" {
		b.bundle = b.host.bundle(b.spec)
		require.NoError(b.t, os.MkdirAll(b.bundle+"/rootfs"+b.log, 0o755)) // root of a user namespace may not
		require.NoError(b.t, os.Chmod(filepath.Dir(b.bundle), 0o755))
	}
	r, err := b.Create(b.ctx(), &taskv3.CreateTaskRequest{ID: id, Bundle: b.bundle})
	if err == nil {
		b.endLater(id)
	}
	return r, err
}

// endLater ends a container of a test that fails half-way.
func (h *host) endLater(id string) {
	h.t.Cleanup(func() {
		ctx := context.Background()
		if _, err := h.Kill(ctx, &taskv3.KillRequest{ID: id, Signal: 9}); err == nil {
			_, _ = h.Wait(ctx, &taskv3.WaitRequest{ID: id})
		}
		_, _ = h.Service.Delete(ctx, &taskv3.DeleteRequest{ID: id})
	})
}

func (b *hookBox) start(id string) (uint32, error) {
	r, err := b.Start(b.ctx(), &taskv3.StartRequest{ID: id})
	if err != nil {
		return 0, err
	}
	return r.Pid, nil
}

func (b *hookBox) end(id string) {
	b.t.Helper()
	_, err := b.Kill(b.ctx(), &taskv3.KillRequest{ID: id, Signal: 9})
	require.NoError(b.t, err)
	_, err = b.Wait(b.ctx(), &taskv3.WaitRequest{ID: id})
	require.NoError(b.t, err)
	b.delete(id)
}

// read returns a file of the log, "" if it is not there.
func (b *hookBox) read(name string) string {
	data, err := os.ReadFile(filepath.Join(b.log, name))
	if err != nil {
		require.ErrorIs(b.t, err, fs.ErrNotExist)
	}
	return string(data)
}

func (b *hookBox) report(name string) *report.Report {
	b.t.Helper()
	return parseReport(b.t, b.read(name+".report"))
}

func (b *hookBox) state(name string) (s specs.State) {
	b.t.Helper()
	require.NoError(b.t, json.Unmarshal([]byte(b.read(name+".state")), &s), name)
	return s
}

// nothingLeft compares what there is of mounts, cgroups, descriptors and
// children with what there was.
func (h *host) nothingLeft() func() {
	// What the daemon keeps: filters, the watcher of OOM kills, a namespace in stock.
	kept := regexp.MustCompile(`^(/proc/.*|anon_inode:bpf-prog|anon_inode:inotify|net:.*)$`)
	take := func() (all []string) {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(h.t, err)
		for _, f := range fds {
			if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && !kept.MatchString(to) {
				all = append(all, to)
			}
		}
		slices.Sort(all)
		_ = filepath.WalkDir(filepath.Join(cgroupMount(h.t), testTree), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		return append(all, fmt.Sprint(countMounts(h.t), " mounts"), fmt.Sprint(h.cfg.Launcher.Children(), " children"))
	}
	before := take()
	return func() {
		h.t.Helper()
		require.EventuallyWithT(h.t, func(c *assert.CollectT) { assert.Equal(c, before, take()) }, 5*time.Second, 20*time.Millisecond)
	}
}
