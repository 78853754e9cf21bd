package tasksvc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	systemapi "vminit/api/services/system/v1"
	"vminit/internal/sys"
)

// appearTimeout is how long OnlineCPU and OnlineMemory wait for the device: a
// host asks as soon as it has plugged it in, the kernel may need a moment.
const appearTimeout = 500 * time.Millisecond

// System is the System service. It owns nothing; it writes only the `online`
// files of CPUs and memory blocks.
type System struct {
	version string
	sysfs   string
}

// NewSystem returns the service. version is the daemon's; sysfs is where sysfs
// is mounted, /sys but for tests.
func NewSystem(version, sysfs string) *System {
	return &System{version: version, sysfs: sysfs}
}

// Register adds the service to srv.
func (s *System) Register(srv *ttrpc.Server) { systemapi.RegisterTTRPCSystemService(srv, s) }

// Info implements System.Info.
func (s *System) Info(context.Context, *emptypb.Empty) (*systemapi.InfoResponse, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	return &systemapi.InfoResponse{
		Version:       s.version,
		KernelVersion: unix.ByteSliceToString(uts.Release[:]),
	}, nil
}

// OfflineCPU implements System.OfflineCPU.
func (s *System) OfflineCPU(ctx context.Context, req *systemapi.OfflineCPURequest) (*emptypb.Empty, error) {
	return s.switchDevice(ctx, "cpu", req.CpuId, "0")
}

// OnlineCPU implements System.OnlineCPU.
func (s *System) OnlineCPU(ctx context.Context, req *systemapi.OnlineCPURequest) (*emptypb.Empty, error) {
	return s.switchDevice(ctx, "cpu", req.CpuId, "1")
}

// OfflineMemory implements System.OfflineMemory.
func (s *System) OfflineMemory(ctx context.Context, req *systemapi.OfflineMemoryRequest) (*emptypb.Empty, error) {
	return s.switchDevice(ctx, "memory", req.MemoryId, "0")
}

// OnlineMemory implements System.OnlineMemory.
func (s *System) OnlineMemory(ctx context.Context, req *systemapi.OnlineMemoryRequest) (*emptypb.Empty, error) {
	return s.switchDevice(ctx, "memory", req.MemoryId, "1")
}

// switchDevice writes value to devices/system/<class>/<class><id>/online, which
// both classes have (Documentation/ABI/testing/sysfs-devices-online).
func (s *System) switchDevice(ctx context.Context, class string, id uint32, value string) (*emptypb.Empty, error) {
	name := class + strconv.FormatUint(uint64(id), 10)
	if name == "cpu0" {
		return nil, sys.Invalidf("cpu0 is always online and cannot be switched")
	}
	dir := filepath.Join(s.sysfs, "devices/system", class, name)
	if value == "1" {
		waitForPath(ctx, dir)
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, sys.Mark(sys.ErrNotFound, fmt.Errorf("%s does not exist; has the host plugged it in?", name))
	} else if err != nil {
		return nil, fmt.Errorf("look for %s: %w", name, err)
	}
	online := filepath.Join(dir, "online")
	now, err := os.ReadFile(online)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("%s cannot be switched: the kernel offers no %s", name, online))
	} else if err != nil {
		return nil, fmt.Errorf("read state of %s: %w", name, err)
	}
	state := map[string]string{"0": "offline", "1": "online"}[value]
	if string(bytes.TrimSpace(now)) == value {
		if class == "memory" && value == "1" && s.autoOnline() {
			return &emptypb.Empty{}, nil // the kernel was told at boot to do what the host asks for
		}
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("%s is %s already", name, state))
	}
	if err := writeExisting(online, value); err != nil {
		return nil, sys.Mark(sys.ErrState, fmt.Errorf("the kernel refuses to set %s %s: %w", name, state, err))
	}
	return &emptypb.Empty{}, nil
}

// autoOnline reports whether memory goes online as it is plugged in
// (Documentation/ABI/testing/sysfs-devices-memory).
func (s *System) autoOnline() bool {
	policy, err := os.ReadFile(filepath.Join(s.sysfs, "devices/system/memory/auto_online_blocks"))
	return err == nil && bytes.HasPrefix(policy, []byte("online"))
}

// writeExisting writes value to a sysfs file in one write(2), the unit in which
// the kernel takes it.
func writeExisting(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteString(value); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// waitForPath returns when path exists, appearTimeout has passed or ctx is done.
func waitForPath(ctx context.Context, path string) {
	ctx, cancel := context.WithTimeout(ctx, appearTimeout)
	defer cancel()
	_ = sys.AwaitDevice(ctx, func() bool { // the caller looks for itself
		_, err := os.Stat(path)
		return err == nil
	})
}
