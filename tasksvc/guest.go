package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	guestapi "vminit/api/services/guest/v1"
	"vminit/internal/sys"
	"vminit/vsockstream"
)

// BootSpan is one step of the guest's boot, in time since kernel start.
type BootSpan struct {
	Name       string
	Start, End time.Duration
	Err        error
}

// GuestConfig is what a Guest reports about.
type GuestConfig struct {
	Events  *Exchange
	Tasks   *Service          // for Metrics, may be nil
	Streams *vsockstream.Hub  // likewise
	Boot    func() []BootSpan // sorted by start
	Cgroup  string            // directory containers' cgroups live below
	Logger  *slog.Logger
}

// Guest is our own service: what a host needs of a microVM beside containers.
// It owns the file systems it has frozen.
type Guest struct {
	cfg    GuestConfig
	fs     frozenFS
	closed context.Context // ends with Close
	cancel context.CancelFunc
}

// NewGuest returns the service. Close it in the end.
func NewGuest(cfg GuestConfig) *Guest {
	ctx, cancel := context.WithCancel(context.Background())
	return &Guest{cfg: cfg, fs: frozenFS{frozen: map[uint64]*frozen{}}, closed: ctx, cancel: cancel}
}

// Register adds the service to a server.
func (g *Guest) Register(srv *ttrpc.Server) { guestapi.RegisterTTRPCGuestService(srv, g) }

// Timeline tells how long each step of the boot took.
func (g *Guest) Timeline(context.Context, *emptypb.Empty) (*guestapi.TimelineResponse, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return nil, fmt.Errorf("clock_gettime CLOCK_BOOTTIME: %w", err)
	}
	resp := &guestapi.TimelineResponse{NowNs: now.Nano(), Now: timestamppb.Now()}
	for _, s := range g.cfg.Boot() {
		span := &guestapi.Span{Name: "boot/" + s.Name, StartNs: int64(s.Start), EndNs: int64(s.End)}
		if s.Err != nil {
			span.Error = s.Err.Error()
		}
		resp.Spans = append(resp.Spans, span)
	}
	return resp, nil
}

// SetTime steps the realtime clock (clock_settime(2)).
func (g *Guest) SetTime(_ context.Context, r *guestapi.SetTimeRequest) (*guestapi.SetTimeResponse, error) {
	if !r.Time.IsValid() {
		return nil, sys.Invalidf("time is missing or out of range")
	}
	t := r.Time.AsTime()
	if t.Year() < 1970 || t.Year() >= 2262 {
		return nil, sys.Invalidf("time %s is not between 1970 and 2262", t)
	}
	step := time.Until(t)
	ts := unix.NsecToTimespec(t.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return nil, fmt.Errorf("clock_settime: %w", err)
	}
	return &guestapi.SetTimeResponse{StepNs: int64(step)}, nil
}

// Sync flushes one file system, or all.
func (g *Guest) Sync(_ context.Context, r *guestapi.SyncRequest) (*emptypb.Empty, error) {
	if r.Path == "" {
		unix.Sync()
		return empty, nil
	}
	fd, err := unix.Open(r.Path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("sync %s: %w", r.Path, err)
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		return nil, fmt.Errorf("syncfs %s: %w", r.Path, err)
	}
	return empty, nil
}

// Events streams events to an observer.
func (g *Guest) Events(ctx context.Context, _ *emptypb.Empty, stream guestapi.TTRPCGuest_EventsServer) error {
	return guardStream(g.cfg.Logger, "Guest.Events", func() error {
		sub := g.cfg.Events.Observe()
		defer sub.Close()
		for {
			env, err := sub.Next(ctx)
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return toStatus(err)
			}
			if err := stream.Send(env); err != nil {
				return err
			}
		}
	})
}
