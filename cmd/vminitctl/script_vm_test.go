package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"vminit/internal/microvm"
	"vminit/internal/rootimage"
	"vminit/internal/vmtest"
	"vminit/internal/vmtest/testroot"
)

// scriptsInGuest are the scripts that also run on the kernel of a guest, where all
// controllers are. VMINIT_SOAK=1 runs those, too, of which rung root says as much:
// emulation is slow.
func scriptsInGuest() string {
	if os.Getenv("VMINIT_SOAK") != "" {
		return "^TestScripts$/^(contract|limits|exec|console|stdio|fds|run)$"
	}
	return "^TestScripts$/^(limits|console)$"
}

// TestScriptsInGuest runs scripts in a guest, in a container that may do anything
// there: its daemon is a second one, beside PID 1.
func TestScriptsInGuest(t *testing.T) {
	requireVM(t)
	bin := buildPrograms(t)
	disk := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, vmtest.Root(disk))
	opt := filepath.Join(disk, "opt")
	require.NoError(t, os.MkdirAll(opt, 0o755))
	require.NoError(t, testroot.Build(filepath.Join(opt, "root")))
	self, err := os.Executable()
	require.NoError(t, err)
	for from, to := range map[string]string{filepath.Join(bin, "vminitctl"): "vminitctl", filepath.Join(bin, "vminitd"): "vminitd", self: "test"} {
		// Debugging symbols are half of it.
		out, err := exec.Command("strip", "-o", filepath.Join(opt, to), from).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	require.NoError(t, os.CopyFS(filepath.Join(opt, "testdata"), os.DirFS("testdata")))
	image := filepath.Join(t.TempDir(), "disk.erofs")
	_, err = rootimage.Build(t.Context(), image, disk, rootimage.Options{})
	require.NoError(t, err)

	g := vmtest.Boot(t, func(c *microvm.Config) {
		c.MemoryMiB = 1024
		c.Disks = append(c.Disks, microvm.Disk{Path: image, ReadOnly: true, Serial: "scripts"})
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	s := vmtest.Privileged("/opt/test", "-test.v", "-test.run="+scriptsInGuest())
	s.Process.Cwd = "/opt"
	s.Process.Env = append(s.Process.Env, "TMPDIR=/tmp", "VMINIT_RUNG=vm", binariesEnv+"=/opt")
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=1777"}},
		specs.Mount{Destination: "/run", Type: "tmpfs", Source: "tmpfs"})
	config, err := json.Marshal(s)
	require.NoError(t, err)
	uri, output, err := g.Stream(ctx)
	require.NoError(t, err)
	defer output.Close()
	defer context.AfterFunc(ctx, func() { output.Close() })()
	r := &taskv3.CreateTaskRequest{ID: "scripts", Rootfs: vmtest.RootMountsOf("/dev/vdb"), Stdout: uri, Stderr: uri}
	require.NoError(t, g.MakeBundle(ctx, r, config))
	_, err = g.Task.Create(ctx, r)
	require.NoError(t, err)
	_, err = g.Task.Start(ctx, &taskv3.StartRequest{ID: r.ID})
	require.NoError(t, err)
	text, err := io.ReadAll(output)
	require.NoError(t, err)
	exit, err := g.Task.Wait(ctx, &taskv3.WaitRequest{ID: r.ID})
	require.NoError(t, err)
	_, err = g.Task.Delete(ctx, &taskv3.DeleteRequest{ID: r.ID})
	require.NoError(t, err)
	require.Zero(t, exit.ExitStatus, "%s", text)
	require.Contains(t, string(text), "--- PASS: TestScripts/limits")
	t.Logf("%s", text)
}
