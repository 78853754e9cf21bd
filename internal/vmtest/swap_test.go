package vmtest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestThreatSwapRace: CVE-2021-30465 and 2024-45310 over the wire. A running
// container has a part of the root file system that others are created on, and
// exchanges there directories with links to / and to /etc outside, at mount
// destinations and at the parents of a device, a masked and a read-only path.
// Every mount ends up inside or the create is refused by name; every tenth
// container is started to look. A runtime that mounts by path makes
// /swapped-N in the guest's root or mounts where the container does not see it.
func TestThreatSwapRace(t *testing.T) {
	creates := soak(1000, 300)
	g := Shared(t)
	ctx := soakContext(t, 10*time.Minute)
	canary, base := g.Canary(ctx, t), g.Baseline(ctx, t)
	defer g.trap(ctx, t, "rm -rf /mnt/hostile")
	g.trap(ctx, t, "mkdir -p root/bin root/proc root/dev root/sys root/tmp root/etc root/vol/a/sub root/vol/c/sub; cp /bin/busybox root/bin; "+
		"ln -s / root/vol/b; ln -s ../../../../../../../../etc root/vol/d; : > root/vol/a/file; : > root/vol/c/file")
	root := []*types.Mount{{Type: "bind", Source: "/run/hostile/root", Options: []string{"rbind"}}}

	var ends []func() int
	for _, pair := range [][2]string{{"a", "b"}, {"c", "d"}} {
		spec := Spec("/bin/probe", "swap", "/vol/"+pair[0], "/vol/"+pair[1])
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: "/run/hostile/root/vol", Options: []string{"rbind", "rw"}})
		p, out := g.ready(ctx, t, spec, "swapping\n")
		ends = append(ends, func() int {
			require.NoError(t, p.Kill(ctx, syscall.SIGTERM))
			var r struct{ Swaps int }
			data, err := io.ReadAll(out)
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(data, &r), "%q", data)
			_, err = p.Finish(ctx)
			require.NoError(t, err)
			return r.Swaps
		})
	}

	made, looked, refused := atomic.Int32{}, atomic.Int32{}, map[string]int{}
	var mu sync.Mutex // guards refused
	next := make(chan int)
	var workers sync.WaitGroup
	begin := time.Now()
	for range 4 {
		workers.Go(func() {
			for i := range next {
				look := i%10 == 0
				text, err := g.swapped(ctx, t, i, root, look)
				switch {
				case err != nil:
					mu.Lock()
					refused[text]++
					mu.Unlock()
				case look:
					looked.Add(1)
					fallthrough
				default:
					made.Add(1)
				}
			}
		})
	}
	for i := range creates {
		next <- i
	}
	close(next)
	workers.Wait()
	took := time.Since(begin)
	for _, end := range ends {
		swaps := end()
		t.Logf("%d swaps", swaps)
		require.Greater(t, swaps, creates, "the race is not run")
	}
	t.Logf("%d creates in %v: %d containers, of which %d were looked into; refused: %v", creates, took, made.Load(), looked.Load(), refused)
	require.NotZero(t, looked.Load())
	require.NotEmpty(t, refused, "proc was never met by a link: the race is not run")
	g.Restored(ctx, t, base)
	g.trap(ctx, t, "rm -rf /mnt/hostile")
	g.Alive(ctx, t, canary)
}

// swapped makes one container of the race, looks into it if it is to, and
// deletes it. The error is that of a create that was refused, with what it said.
func (g *Guest) swapped(ctx context.Context, t *testing.T, i int, root []*types.Mount, look bool) (string, error) {
	spec := Spec("/bin/busybox", "sleep", "1000")
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/vol/a/swapped-1", Type: "tmpfs", Source: "raced1"},
		specs.Mount{Destination: "/vol/c/swapped-2/deep", Type: "tmpfs", Source: "raced2"},
		specs.Mount{Destination: "/vol/b/sub", Type: "tmpfs", Source: "raced3"},
		specs.Mount{Destination: "/vol/d/swapped-4", Type: "bind", Source: "/run/hostile/root/bin", Options: []string{"bind", "ro"}})
	mounts := 4
	if i%3 == 0 { // a link is refused for these
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/vol/a/sub", Type: "proc", Source: "raced5"})
		mounts++
	}
	spec.Linux.Devices = []specs.LinuxDevice{{Path: "/vol/c/swapped-node", Type: "c", Major: 1, Minor: 3}}
	spec.Linux.MaskedPaths = append(spec.Linux.MaskedPaths, "/vol/a/file")
	spec.Linux.ReadonlyPaths = append(spec.Linux.ReadonlyPaths, "/vol/c/sub")
	r := &taskv3.CreateTaskRequest{ID: "c" + NewID(), Rootfs: root}
	if err := g.MakeBundle(ctx, r, marshal(t, spec)); err != nil {
		t.Errorf("bundle: %v", err)
		return "bundle", err
	}
	if _, err := g.Task.Create(ctx, r); err != nil {
		if !regexp.MustCompile(`(mount|make|mask|find|open) .*/vol/`).MatchString(err.Error()) || status.Code(err) == codes.Internal {
			t.Errorf("create %d: this says not what was refused: %v", i, err)
		}
		return strings.ReplaceAll(status.Convert(err).Message(), r.ID, "ID"), err
	}
	p := &Process{g: g, id: r.ID}
	defer g.end(t, p)
	if !look {
		return "", nil
	}
	if err := p.Start(ctx); err != nil {
		t.Errorf("start %d: %v", i, err)
		return "", nil
	}
	e, err := g.Exec(ctx, r.ID, Spec("/bin/busybox", "cat", "/proc/1/mountinfo").Process, false)
	if err == nil {
		err = e.Start(ctx)
	}
	var seen Result
	if err == nil {
		seen, err = e.Finish(ctx)
	}
	if err != nil || seen.Code != 0 {
		t.Errorf("look into %d: %v %s", i, err, seen.Stderr)
	}
	found := 0
	for line := range strings.Lines(seen.Stdout) {
		if strings.Contains(line, " raced") || strings.Contains(line, "/hostile/root/bin ") {
			found++
		}
	}
	if found != mounts {
		t.Errorf("container %d has %d of the %d mounts:\n%s", i, found, mounts, seen.Stdout)
	}
	return fmt.Sprint(found), nil
}
