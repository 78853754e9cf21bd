package tasksvc

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	systemapi "vminit/api/services/system/v1"
	"vminit/internal/sys"
)

// fakeSysfs makes a directory with `online` files of the given contents.
func fakeSysfs(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, data := range files {
		path := filepath.Join(root, "devices/system", name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(data), 0o644))
	}
	return root
}

func TestSystemInfo(t *testing.T) {
	info, err := NewSystem("1.2.3", "/sys").Info(context.Background(), &emptypb.Empty{})
	require.NoError(t, err)
	require.Equal(t, "1.2.3", info.Version)
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(string(release)), info.KernelVersion)
}

func TestSystemSwitch(t *testing.T) {
	ctx := context.Background()
	files := map[string]string{
		"cpu/cpu0/topology":         "",
		"cpu/cpu1/online":           "1\n",
		"cpu/cpu2/online":           "0\n",
		"cpu/cpu3/topology":         "", // no online file: cannot be switched
		"memory/memory0/online":     "1\n",
		"memory/memory5/online":     "0\n",
		"memory/memory7/removable":  "0\n",
		"memory/auto_online_blocks": "offline\n",
	}
	off := func(s *System, id uint32) error {
		_, err := s.OfflineCPU(ctx, &systemapi.OfflineCPURequest{CpuId: id})
		return err
	}
	on := func(s *System, id uint32) error {
		_, err := s.OnlineCPU(ctx, &systemapi.OnlineCPURequest{CpuId: id})
		return err
	}
	memOff := func(s *System, id uint32) error {
		_, err := s.OfflineMemory(ctx, &systemapi.OfflineMemoryRequest{MemoryId: id})
		return err
	}
	memOn := func(s *System, id uint32) error {
		_, err := s.OnlineMemory(ctx, &systemapi.OnlineMemoryRequest{MemoryId: id})
		return err
	}
	for _, tc := range []struct {
		name string
		call func(*System, uint32) error
		id   uint32
		code codes.Code
		file string
		want string
	}{
		{"cpu off", off, 1, codes.OK, "cpu/cpu1/online", "0"},
		{"cpu on", on, 2, codes.OK, "cpu/cpu2/online", "1"},
		{"cpu 0 off", off, 0, codes.InvalidArgument, "", ""},
		{"cpu 0 on", on, 0, codes.InvalidArgument, "", ""},
		{"unknown cpu off", off, 99, codes.NotFound, "", ""},
		{"unknown cpu on", on, 99, codes.NotFound, "", ""},
		{"cpu off already", off, 2, codes.FailedPrecondition, "cpu/cpu2/online", "0\n"},
		{"cpu on already", on, 1, codes.FailedPrecondition, "cpu/cpu1/online", "1\n"},
		{"cpu without switch", off, 3, codes.FailedPrecondition, "", ""},
		{"memory off", memOff, 0, codes.OK, "memory/memory0/online", "0"},
		{"memory on", memOn, 5, codes.OK, "memory/memory5/online", "1"},
		{"unknown memory off", memOff, 1 << 31, codes.NotFound, "", ""},
		{"unknown memory on", memOn, 6, codes.NotFound, "", ""},
		{"memory on already", memOn, 0, codes.FailedPrecondition, "", ""},
		{"memory without switch", memOff, 7, codes.FailedPrecondition, "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := fakeSysfs(t, files)
			err := toStatus(tc.call(NewSystem("v", root), tc.id))
			require.Equal(t, tc.code, status.Code(err), "%v", err)
			if tc.file != "" {
				got, err := os.ReadFile(filepath.Join(root, "devices/system", tc.file))
				require.NoError(t, err)
				require.Equal(t, tc.want, string(got))
			}
		})
	}
}

// TestSystemKernelRefuses: any errno of the kernel is FAILED_PRECONDITION and
// is named. A limit on file sizes stands for a kernel that says no.
func TestSystemKernelRefuses(t *testing.T) {
	root := fakeSysfs(t, map[string]string{"cpu/cpu1/online": "1\n"})
	var err error
	withFileSizeLimit(t, 0, func() {
		_, err = NewSystem("v", root).OfflineCPU(context.Background(), &systemapi.OfflineCPURequest{CpuId: 1})
	})
	require.ErrorIs(t, err, sys.ErrState)
	require.ErrorContains(t, err, "file too large")
}

// TestSystemHotplug: a CPU that appears shortly after the call is found.
func TestSystemHotplug(t *testing.T) {
	requireRoot(t)
	root := fakeSysfs(t, map[string]string{"new/online": "0\n"})
	go func() {
		time.Sleep(50 * time.Millisecond)
		os.MkdirAll(filepath.Join(root, "devices/system/cpu"), 0o755)
		os.Rename(filepath.Join(root, "devices/system/new"), filepath.Join(root, "devices/system/cpu/cpu4"))
		os.WriteFile("/sys/class/mem/null/uevent", []byte("change"), 0) // the kernel tells everybody
	}()
	_, err := NewSystem("v", root).OnlineCPU(context.Background(), &systemapi.OnlineCPURequest{CpuId: 4})
	require.NoError(t, err)
}
