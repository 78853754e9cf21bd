package tasksvc

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"vminit/cgroup2"
	"vminit/internal/sys"
)

// Stats reads the container's counters: io.containerd.cgroups.v2.Metrics. A
// part that the kernel does not account for is left out.
func (s *Service) Stats(ctx context.Context, r *taskv3.StatsRequest) (*taskv3.StatsResponse, error) {
	c, err := s.find(namespaceOf(ctx), r.ID)
	if err != nil {
		return nil, err
	}
	st, err := c.cgroup.Stats()
	if errors.Is(err, os.ErrClosed) { // a Delete came in between
		return nil, sys.Mark(sys.ErrNotFound, fmt.Errorf("container %s has been deleted", c.id))
	}
	if err != nil {
		return nil, err
	}
	m := metricsOf(&st)
	if c.join&unix.CLONE_NEWNET != 0 {
		if m.Network, err = c.network(); err != nil {
			return nil, err
		}
	}
	body, err := containerdAny(m)
	return &taskv3.StatsResponse{Stats: body}, err
}

// containerdAny packs a message as containerd does, whose type URLs have no
// "type.googleapis.com/" in front.
func containerdAny(m proto.Message) (*anypb.Any, error) {
	value, err := proto.Marshal(m)
	return &anypb.Any{TypeUrl: string(m.ProtoReflect().Descriptor().FullName()), Value: value}, err
}

// metricsOf translates counters into the message. What it has no field for
// (peaks, discards, misc) is in the metrics of the Guest service.
func metricsOf(s *cgroup2.Stats) *stats.Metrics {
	m := &stats.Metrics{Memory: memoryOf(s.Memory)}
	if p := s.Pids; p != nil {
		m.Pids = &stats.PidsStat{Current: p.Current, Limit: p.Limit}
	}
	if c := s.CPU; c != nil {
		m.CPU = &stats.CPUStat{
			UsageUsec: c.Usage, UserUsec: c.User, SystemUsec: c.System,
			NrPeriods: c.NrPeriods, NrThrottled: c.NrThrottled, ThrottledUsec: c.Throttled,
			NrBursts: c.NrBursts, BurstUsec: c.Burst, PSI: pressureOf(c.PSI),
		}
	}
	if e := s.MemoryEvents; e != nil {
		m.MemoryEvents = &stats.MemoryEvents{
			Low: e.Low, High: e.High, Max: e.Max, Oom: e.OOM, OomKill: e.OOMKill, OomGroupKill: e.OOMGroupKill,
		}
	}
	if s.IO != nil {
		m.Io = &stats.IOStat{PSI: pressureOf(s.IO.PSI)}
		for _, e := range s.IO.Usage {
			m.Io.Usage = append(m.Io.Usage, &stats.IOEntry{
				Major: e.Major, Minor: e.Minor, Rbytes: e.RBytes, Wbytes: e.WBytes, Rios: e.RIOs, Wios: e.WIOs,
			})
		}
	}
	if s.RDMA != nil {
		m.Rdma = &stats.RdmaStat{Current: rdmaOf(s.RDMA.Current), Limit: rdmaOf(s.RDMA.Limit)}
	}
	for _, h := range s.HugeTLB {
		m.Hugetlb = append(m.Hugetlb, &stats.HugeTlbStat{Pagesize: h.PageSize, Current: h.Current, Max: h.Max, Failcnt: h.Failures})
	}
	return m
}

func memoryOf(s *cgroup2.MemoryStats) *stats.MemoryStat {
	if s == nil {
		return nil
	}
	return &stats.MemoryStat{
		Anon: s.Anon, File: s.File, KernelStack: s.KernelStack, Slab: s.Slab, Sock: s.Sock, Shmem: s.Shmem,
		FileMapped: s.FileMapped, FileDirty: s.FileDirty, FileWriteback: s.FileWriteback, AnonThp: s.AnonTHP,
		InactiveAnon: s.InactiveAnon, ActiveAnon: s.ActiveAnon, InactiveFile: s.InactiveFile, ActiveFile: s.ActiveFile,
		Unevictable: s.Unevictable, SlabReclaimable: s.SlabReclaimable, SlabUnreclaimable: s.SlabUnreclaimable,
		Pgfault: s.PgFault, Pgmajfault: s.PgMajFault,
		WorkingsetRefault: s.WorkingsetRefault, WorkingsetActivate: s.WorkingsetActivate, WorkingsetNodereclaim: s.WorkingsetNodeReclaim,
		Pgrefill: s.PgRefill, Pgscan: s.PgScan, Pgsteal: s.PgSteal, Pgactivate: s.PgActivate, Pgdeactivate: s.PgDeactivate,
		Pglazyfree: s.PgLazyFree, Pglazyfreed: s.PgLazyFreed,
		ThpFaultAlloc: s.THPFaultAlloc, ThpCollapseAlloc: s.THPCollapseAlloc,
		Usage: s.Usage, UsageLimit: s.UsageLimit, SwapUsage: s.SwapUsage, SwapLimit: s.SwapLimit,
		MaxUsage: s.MaxUsage, SwapMaxUsage: s.SwapMaxUsage, PSI: pressureOf(s.PSI),
	}
}

func pressureOf(p *cgroup2.Pressure) *stats.PSIStats {
	if p == nil {
		return nil
	}
	line := func(l cgroup2.PressureLine) *stats.PSIData {
		return &stats.PSIData{Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300, Total: l.Total}
	}
	return &stats.PSIStats{Some: line(p.Some), Full: line(p.Full)}
}

func rdmaOf(entries []cgroup2.RDMAEntry) (all []*stats.RdmaEntry) {
	for _, e := range entries {
		all = append(all, &stats.RdmaEntry{Device: e.Device, HcaHandles: e.HCAHandles, HcaObjects: e.HCAObjects})
	}
	return all
}
