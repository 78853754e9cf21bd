package tasksvc

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	guestapi "vminit/api/services/guest/v1"
	"vminit/cgroup2"
)

// Metrics implements Guest.Metrics.
func (g *Guest) Metrics(context.Context, *emptypb.Empty) (*guestapi.MetricsResponse, error) {
	m := new(openMetrics)
	if err := g.daemonMetrics(m); err != nil {
		return nil, fmt.Errorf("metrics of the daemon: %w", err)
	}
	if err := guestMetrics(m); err != nil {
		return nil, fmt.Errorf("metrics of the guest: %w", err)
	}
	if g.cfg.Tasks != nil {
		g.cfg.Tasks.metrics(m)
	}
	return &guestapi.MetricsResponse{Text: m.text()}, nil
}

// daemonMetrics are about this process.
func (g *Guest) daemonMetrics(m *openMetrics) error {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	mem := memory()
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		return fmt.Errorf("getrusage: %w", err)
	}
	m.gauge("vminit_goroutines", "Goroutines of the daemon.")
	m.value(uint64(runtime.NumGoroutine()))
	m.gauge("vminit_threads", "Threads of the daemon.")
	m.value(uint64(len(tasks)))
	m.gauge("vminit_open_fds", "Open file descriptors of the daemon.")
	m.value(uint64(len(fds) - 1)) // without the one that reads them
	m.gauge("vminit_resident_bytes", "Resident memory of the daemon.")
	m.value(mem.Rss)
	m.gauge("vminit_heap_bytes", "Objects on the daemon's heap.")
	m.value(mem.Heap)
	m.counter("vminit_cpu_seconds", "CPU time of the daemon.")
	m.seconds(uint64(use.Utime.Nano()+use.Stime.Nano()), 1e9)
	if g.cfg.Events != nil {
		st := g.cfg.Events.Stats()
		m.counter("vminit_events_published", "Events of containers.")
		m.value(st.Published)
		m.gauge("vminit_events_kept", "Events kept for a host that may not have had them.")
		m.value(uint64(st.Kept))
		m.gauge("vminit_event_subscribers", "Event streams.")
		m.value(uint64(st.Subscribers))
		m.counter("vminit_events_dropped", "Events dropped for want of room before every subscriber had them.")
		m.value(st.DroppedExits, label{"kind", "exit"})
		m.value(st.DroppedOther, label{"kind", "other"})
	}
	if g.cfg.Streams != nil {
		handshaking, unclaimed, claimed := g.cfg.Streams.Stats()
		m.gauge("vminit_streams", "Connections of the stream port.")
		m.value(uint64(handshaking), label{"state", "handshaking"})
		m.value(uint64(unclaimed), label{"state", "unclaimed"})
		m.value(uint64(claimed), label{"state", "claimed"})
	}
	return nil
}

// guestMetrics are about the machine.
func guestMetrics(m *openMetrics) error {
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return fmt.Errorf("clock_gettime CLOCK_BOOTTIME: %w", err)
	}
	m.gauge("vminit_guest_uptime_seconds", "Time since the guest's kernel started.")
	m.seconds(uint64(up.Nano()), 1e9)
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	m.gauge("vminit_guest_memory_bytes", "Memory of the guest as /proc/meminfo has it.")
	for line := range bytes.Lines(data) {
		name, rest, _ := bytes.Cut(line, []byte(":"))
		f := bytes.Fields(rest)
		if len(f) == 0 || bytes.ContainsAny(name, "(_") {
			continue
		}
		kb, err := strconv.ParseUint(string(f[0]), 10, 64)
		if err != nil || len(f) != 2 { // without kB: a count of huge pages
			continue
		}
		switch name := string(name); name {
		case "MemTotal", "MemFree", "MemAvailable", "Buffers", "Cached", "Dirty", "Slab", "SwapTotal", "SwapFree":
			m.value(kb<<10, label{"kind", name})
		}
	}
	return nil
}

// containerStats is what one container contributes.
type containerStats struct {
	labels []label
	stats  cgroup2.Stats
}

// metrics are about the containers. One that is being deleted may be missing.
func (s *Service) metrics(m *openMetrics) {
	var all []containerStats
	states := map[State]uint64{}
	for _, c := range s.list() {
		c.mu.Lock()
		states[c.init.state]++
		c.mu.Unlock()
		if st, err := c.cgroup.Stats(); err == nil {
			all = append(all, containerStats{[]label{{"namespace", c.namespace}, {"id", c.id}}, st})
		}
	}
	m.gauge("vminit_containers", "Containers by state.")
	for _, st := range []State{Created, Running, Paused, Stopped} {
		m.value(states[st], label{"state", st.String()})
	}
	m.containerCPU(all)
	m.containerMemory(all)
	m.gauge("vminit_container_processes", "Processes and threads.")
	m.each(all, func(s *cgroup2.Stats) (uint64, bool) {
		if s.Pids == nil {
			return 0, false
		}
		return s.Pids.Current, true
	})
	m.containerIO(all)
}

func (m *openMetrics) containerCPU(all []containerStats) {
	m.counter("vminit_container_cpu_seconds", "CPU time used.")
	for i := range all {
		if c := all[i].stats.CPU; c != nil {
			m.seconds(c.User, 1e6, append(all[i].labels, label{"mode", "user"})...)
			m.seconds(c.System, 1e6, append(all[i].labels, label{"mode", "system"})...)
		}
	}
	m.counter("vminit_container_throttled_seconds", "Time held back by the CPU quota.")
	for i := range all {
		if c := all[i].stats.CPU; c != nil {
			m.seconds(c.Throttled, 1e6, all[i].labels...)
		}
	}
}

func (m *openMetrics) containerMemory(all []containerStats) {
	gauge := func(name, help string, field func(*cgroup2.MemoryStats) uint64) {
		m.gauge(name, help)
		m.each(all, func(s *cgroup2.Stats) (uint64, bool) {
			if s.Memory == nil {
				return 0, false
			}
			v := field(s.Memory)
			return v, v != math.MaxUint64 // "max" is no limit
		})
	}
	gauge("vminit_container_memory_bytes", "Memory charged.", func(s *cgroup2.MemoryStats) uint64 { return s.Usage })
	gauge("vminit_container_memory_peak_bytes", "Most memory ever charged (Linux 5.19).", func(s *cgroup2.MemoryStats) uint64 { return s.MaxUsage })
	gauge("vminit_container_memory_limit_bytes", "Limit of memory, if there is one.", func(s *cgroup2.MemoryStats) uint64 { return s.UsageLimit })
	gauge("vminit_container_swap_bytes", "Swap charged.", func(s *cgroup2.MemoryStats) uint64 { return s.SwapUsage })
	m.counter("vminit_container_oom_kills", "Processes killed for want of memory.")
	m.each(all, func(s *cgroup2.Stats) (uint64, bool) {
		if s.MemoryEvents == nil {
			return 0, false
		}
		return s.MemoryEvents.OOMKill, true
	})
}

func (m *openMetrics) containerIO(all []containerStats) {
	m.counter("vminit_container_io_bytes", "Bytes moved to and from block devices.")
	for i := range all {
		if all[i].stats.IO == nil {
			continue
		}
		for _, e := range all[i].stats.IO.Usage {
			device := label{"device", fmt.Sprintf("%d:%d", e.Major, e.Minor)}
			for _, x := range []struct {
				kind string
				n    uint64
			}{{"read", e.RBytes}, {"write", e.WBytes}, {"discard", e.DBytes}} {
				m.value(x.n, append(all[i].labels, device, label{"operation", x.kind})...)
			}
		}
	}
}

// each writes a sample for every container that has the value.
func (m *openMetrics) each(all []containerStats, get func(*cgroup2.Stats) (uint64, bool)) {
	for i := range all {
		if v, ok := get(&all[i].stats); ok {
			m.value(v, all[i].labels...)
		}
	}
}

// list returns the containers that have been created, in order of their names.
func (s *Service) list() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*container
	for _, c := range s.containers {
		select {
		case <-c.created:
			all = append(all, c)
		default:
		}
	}
	slices.SortFunc(all, func(a, b *container) int {
		return cmp.Or(cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.id, b.id))
	})
	return all
}
