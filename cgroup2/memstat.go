package cgroup2

// MemoryStats is memory.stat, memory.current and what goes with it, and
// memory.pressure. The fields named after a key of memory.stat mean what
// cgroup-v2.rst says of it: gauges in bytes, then counts of events.
type MemoryStats struct {
	Anon, File, KernelStack, Slab, Sock, Shmem    uint64
	FileMapped, FileDirty, FileWriteback, AnonTHP uint64
	InactiveAnon, ActiveAnon                      uint64
	InactiveFile, ActiveFile, Unevictable         uint64
	SlabReclaimable, SlabUnreclaimable            uint64
	PgFault, PgMajFault                           uint64
	WorkingsetRefault, WorkingsetActivate         uint64 // anon and file together
	WorkingsetNodeReclaim                         uint64
	PgRefill, PgScan, PgSteal, PgActivate         uint64
	PgDeactivate, PgLazyFree, PgLazyFreed         uint64
	THPFaultAlloc, THPCollapseAlloc               uint64
	Kernel, PageTables, Percpu, SwapCached        uint64 // Linux 5.18, 5.12, 5.13, 5.10
	Usage, UsageLimit, SwapUsage, SwapLimit       uint64
	MaxUsage, SwapMaxUsage                        uint64 // Linux 5.19, 6.5
	UsageLow, UsageHigh                           uint64 // memory.low, memory.high
	PSI                                           *Pressure
}

// MemoryEvents is memory.events: it counts for the cgroup and all below it.
type MemoryEvents struct {
	Low, High, Max, OOM, OOMKill uint64
	OOMGroupKill                 uint64 // Linux 5.17
}

// field returns where the value of a key of memory.stat goes, or nil.
func (s *MemoryStats) field(key []byte) *uint64 {
	switch string(key) {
	case "anon":
		return &s.Anon
	case "file":
		return &s.File
	case "kernel":
		return &s.Kernel
	case "kernel_stack":
		return &s.KernelStack
	case "pagetables":
		return &s.PageTables
	case "percpu":
		return &s.Percpu
	case "slab":
		return &s.Slab
	case "sock":
		return &s.Sock
	case "shmem":
		return &s.Shmem
	case "swapcached":
		return &s.SwapCached
	case "file_mapped":
		return &s.FileMapped
	case "file_dirty":
		return &s.FileDirty
	case "file_writeback":
		return &s.FileWriteback
	case "anon_thp":
		return &s.AnonTHP
	case "inactive_anon":
		return &s.InactiveAnon
	case "active_anon":
		return &s.ActiveAnon
	case "inactive_file":
		return &s.InactiveFile
	case "active_file":
		return &s.ActiveFile
	case "unevictable":
		return &s.Unevictable
	case "slab_reclaimable":
		return &s.SlabReclaimable
	case "slab_unreclaimable":
		return &s.SlabUnreclaimable
	}
	return s.counter(key)
}

// counter is the half of field for keys that count events.
func (s *MemoryStats) counter(key []byte) *uint64 {
	switch string(key) {
	case "pgfault":
		return &s.PgFault
	case "pgmajfault":
		return &s.PgMajFault
	// One key until Linux 5.8, one for anonymous memory and one for files since.
	case "workingset_refault", "workingset_refault_anon", "workingset_refault_file":
		return &s.WorkingsetRefault
	case "workingset_activate", "workingset_activate_anon", "workingset_activate_file":
		return &s.WorkingsetActivate
	case "workingset_nodereclaim":
		return &s.WorkingsetNodeReclaim
	case "pgrefill":
		return &s.PgRefill
	case "pgscan":
		return &s.PgScan
	case "pgsteal":
		return &s.PgSteal
	case "pgactivate":
		return &s.PgActivate
	case "pgdeactivate":
		return &s.PgDeactivate
	case "pglazyfree":
		return &s.PgLazyFree
	case "pglazyfreed":
		return &s.PgLazyFreed
	case "thp_fault_alloc":
		return &s.THPFaultAlloc
	case "thp_collapse_alloc":
		return &s.THPCollapseAlloc
	}
	return nil
}

func parseMemoryStat(data []byte) (MemoryStats, error) {
	var s MemoryStats
	err := eachKey(data, func(key []byte, value uint64) {
		if field := s.field(key); field != nil {
			*field += value
		}
	})
	return s, err
}

func parseMemoryEvents(data []byte) (MemoryEvents, error) {
	var ev MemoryEvents
	err := eachKey(data, func(key []byte, value uint64) {
		switch string(key) {
		case "low":
			ev.Low = value
		case "high":
			ev.High = value
		case "max":
			ev.Max = value
		case "oom":
			ev.OOM = value
		case "oom_kill":
			ev.OOMKill = value
		case "oom_group_kill":
			ev.OOMGroupKill = value
		}
	})
	return ev, err
}

// readMemory reads the memory controller's files. Those about swap are missing
// where the kernel does not account for it.
func readMemory(r *statReader) *MemoryStats {
	var s MemoryStats
	if !r.file("memory.stat", func(data []byte) (err error) {
		s, err = parseMemoryStat(data)
		return err
	}) {
		return nil
	}
	r.value("memory.current", &s.Usage)
	r.value("memory.max", &s.UsageLimit)
	r.value("memory.low", &s.UsageLow)
	r.value("memory.high", &s.UsageHigh)
	r.value("memory.peak", &s.MaxUsage)
	r.value("memory.swap.current", &s.SwapUsage)
	r.value("memory.swap.max", &s.SwapLimit)
	r.value("memory.swap.peak", &s.SwapMaxUsage)
	s.PSI = r.pressure("memory.pressure")
	return &s
}

func readMemoryEvents(r *statReader) *MemoryEvents {
	var ev MemoryEvents
	if !r.file("memory.events", func(data []byte) (err error) {
		ev, err = parseMemoryEvents(data)
		return err
	}) {
		return nil
	}
	return &ev
}
