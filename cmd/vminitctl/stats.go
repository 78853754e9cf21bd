package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	taskv3 "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"vminit/internal/sys"
)

func newStatsCommand(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "stats ID",
		Short: "Print what a container uses",
		Long: `Print what a container uses: CPU time, memory, processes, disk and network. With
--json it is everything the daemon counts, as containerd's metrics for cgroup v2;
for runc's form see events --stats.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: g.completeIDs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return g.call(cmd, args[0], func(ctx context.Context, guest *guest) error {
				m, err := guest.metrics(ctx, args[0])
				if err != nil {
					return err
				}
				if !g.json {
					return printStats(cmd.OutOrStdout(), m)
				}
				b, err := protojson.MarshalOptions{UseProtoNames: true, Indent: "  "}.Marshal(m)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", b)
				return err
			})
		},
	}
}

// metrics asks for a container's counters.
func (g *guest) metrics(ctx context.Context, id string) (*stats.Metrics, error) {
	r, err := g.task.Stats(ctx, &taskv3.StatsRequest{ID: id})
	if err != nil {
		return nil, err
	}
	m := new(stats.Metrics)
	if r.Stats == nil || r.Stats.MessageName() != m.ProtoReflect().Descriptor().FullName() {
		return nil, sys.Unsupportedf("the daemon counts in another form, %s", r.Stats.GetTypeUrl())
	}
	return m, proto.Unmarshal(r.Stats.Value, m)
}

func printStats(w io.Writer, m *stats.Metrics) (err error) {
	line := func(name, format string, args ...any) {
		if err == nil {
			_, err = fmt.Fprintf(w, "%-9s"+format+"\n", append([]any{name}, args...)...)
		}
	}
	usec := func(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }
	if c := m.CPU; c != nil {
		line("cpu", "%v (user %v, system %v; throttled %d of %d periods, %v)", usec(c.UsageUsec), usec(c.UserUsec), usec(c.SystemUsec), c.NrThrottled, c.NrPeriods, usec(c.ThrottledUsec))
	}
	if s := m.Memory; s != nil {
		line("memory", "%d bytes%s (anonymous %d, files %d, kernel stacks %d, slab %d)", s.Usage, ofLimit(s.UsageLimit), s.Anon, s.File, s.KernelStack, s.Slab)
		line("swap", "%d bytes%s", s.SwapUsage, ofLimit(s.SwapLimit))
	}
	if p := m.Pids; p != nil {
		line("pids", "%d%s", p.Current, ofLimit(p.Limit))
	}
	for _, e := range m.GetIo().GetUsage() {
		line("io", "%d:%d read %d bytes in %d, written %d bytes in %d", e.Major, e.Minor, e.Rbytes, e.Rios, e.Wbytes, e.Wios)
	}
	for _, n := range m.Network {
		line("network", "%s received %d bytes in %d packets, sent %d bytes in %d", n.Name, n.RxBytes, n.RxPackets, n.TxBytes, n.TxPackets)
	}
	return err
}

// ofLimit tells a limit, if there is one: the largest number stands for none.
func ofLimit(n uint64) string {
	if n == 0 || n >= 1<<63-1 {
		return ""
	}
	return fmt.Sprintf(" of %d", n)
}

// runcStats is a container's usage in the JSON of runc's events, whose readers
// know these names. Times are nanoseconds.
type runcStats struct {
	CPU struct {
		Usage struct {
			Total  uint64 `json:"total"`
			Kernel uint64 `json:"kernel"`
			User   uint64 `json:"user"`
		} `json:"usage"`
		Throttling struct {
			Periods          uint64 `json:"periods"`
			ThrottledPeriods uint64 `json:"throttledPeriods"`
			ThrottledTime    uint64 `json:"throttledTime"`
		} `json:"throttling"`
		PSI *stats.PSIStats `json:"psi,omitempty"`
	} `json:"cpu"`
	Memory struct {
		Cache uint64            `json:"cache"`
		Usage runcMemory        `json:"usage"`
		Swap  runcMemory        `json:"swap"`
		Raw   map[string]uint64 `json:"raw,omitempty"`
		PSI   *stats.PSIStats   `json:"psi,omitempty"`
	} `json:"memory"`
	Pids struct {
		Current uint64 `json:"current"`
		Limit   uint64 `json:"limit"`
	} `json:"pids"`
	Blkio struct {
		Bytes []runcBlkio `json:"ioServiceBytesRecursive,omitempty"`
		Ops   []runcBlkio `json:"ioServicedRecursive,omitempty"`
	} `json:"blkio"`
	Hugetlb map[string]runcHugetlb `json:"hugetlb"`
	Network []runcNetwork          `json:"network_interfaces"`
}

type runcMemory struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage"`
	Max     uint64 `json:"max"`
	Failcnt uint64 `json:"failcnt"`
}

type runcBlkio struct {
	Major uint64 `json:"major"`
	Minor uint64 `json:"minor"`
	Op    string `json:"op"`
	Value uint64 `json:"value"`
}

type runcHugetlb struct {
	Usage   uint64 `json:"usage"`
	Max     uint64 `json:"max"`
	Failcnt uint64 `json:"failcnt"`
}

type runcNetwork struct {
	Name      string
	RxBytes   uint64
	RxPackets uint64
	RxErrors  uint64
	RxDropped uint64
	TxBytes   uint64
	TxPackets uint64
	TxErrors  uint64
	TxDropped uint64
}

func asRunc(m *stats.Metrics) *runcStats {
	s := &runcStats{Hugetlb: map[string]runcHugetlb{}, Network: []runcNetwork{}}
	if c := m.CPU; c != nil {
		s.CPU.Usage.Total, s.CPU.Usage.Kernel, s.CPU.Usage.User = 1000*c.UsageUsec, 1000*c.SystemUsec, 1000*c.UserUsec
		s.CPU.Throttling.Periods, s.CPU.Throttling.ThrottledPeriods, s.CPU.Throttling.ThrottledTime = c.NrPeriods, c.NrThrottled, 1000*c.ThrottledUsec
		s.CPU.PSI = c.PSI
	}
	if x := m.Memory; x != nil {
		s.Memory.Cache, s.Memory.PSI = x.File, x.PSI
		s.Memory.Usage = runcMemory{Limit: x.UsageLimit, Usage: x.Usage, Max: x.MaxUsage, Failcnt: m.GetMemoryEvents().GetMax()}
		s.Memory.Swap = runcMemory{Limit: x.SwapLimit, Usage: x.SwapUsage, Max: x.SwapMaxUsage}
		s.Memory.Raw = map[string]uint64{}
		x.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			if f.Kind() == protoreflect.Uint64Kind {
				s.Memory.Raw[string(f.Name())] = v.Uint()
			}
			return true
		})
	}
	s.Pids.Current, s.Pids.Limit = m.GetPids().GetCurrent(), m.GetPids().GetLimit()
	for _, e := range m.GetIo().GetUsage() {
		s.Blkio.Bytes = append(s.Blkio.Bytes, runcBlkio{e.Major, e.Minor, "Read", e.Rbytes}, runcBlkio{e.Major, e.Minor, "Write", e.Wbytes})
		s.Blkio.Ops = append(s.Blkio.Ops, runcBlkio{e.Major, e.Minor, "Read", e.Rios}, runcBlkio{e.Major, e.Minor, "Write", e.Wios})
	}
	for _, h := range m.Hugetlb {
		s.Hugetlb[h.Pagesize] = runcHugetlb{h.Current, h.Max, h.Failcnt}
	}
	for _, n := range m.Network {
		s.Network = append(s.Network, runcNetwork{n.Name, n.RxBytes, n.RxPackets, n.RxErrors, n.RxDropped, n.TxBytes, n.TxPackets, n.TxErrors, n.TxDropped})
	}
	return s
}
